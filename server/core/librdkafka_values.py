"""How librdkafka reads the value of an option: strings work everywhere, "5" and "TRUE" too.

Every reader raises ValueError saying what was expected, never what was given: any value may be a secret.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from server.core.address import server_list

Scalar = str | int | float | bool | None
Reader = Callable[[Scalar], Any]

INT32 = 2_147_483_647

# RFC 7628, 3.1: what a pair that goes along with a token may look like. "auth" is the token's own name.
_EXTENSION = re.compile(r"(?!auth=)([A-Za-z]+)=([\x21-\x7e\t\r\n ]*)")


def text(value: Scalar) -> str:
    """Read any text."""
    return str(value)


def filled(value: Scalar) -> str:
    """Read text that is not empty, without white space around it."""
    if not (text := str(value).strip()):
        raise ValueError("must not be empty")
    return text


def servers(value: Scalar) -> str:
    """Read a list of `host[:port]` with commas between them."""
    return server_list(str(value))


def flag(value: Scalar) -> bool:
    """Read true or false."""
    text = str(value).strip().lower()
    if text in {"true", "t", "1"}:
        return True
    if text in {"false", "f", "0"}:
        return False
    raise ValueError("expected true or false")


def whole(low: int, high: int) -> Reader:
    """Make a reader of whole numbers from `low` to `high`."""

    def read(value: Scalar) -> int:
        expected = f"expected a whole number from {low} to {high}"
        try:
            number = int(str(value).strip())
        except ValueError:
            raise ValueError(expected) from None
        if not low <= number <= high:
            raise ValueError(expected)
        return number

    return read


def milliseconds(value: Scalar) -> float:
    """Read the linger time, in milliseconds."""
    expected = "expected a number of milliseconds from 0 to 900000"
    try:
        number = float(str(value).strip())
    except ValueError:
        raise ValueError(expected) from None
    if not 0 <= number <= 900_000:  # noqa: PLR2004 - librdkafka's range, as the message says
        raise ValueError(expected)
    return number


def choice(*choices: str) -> Reader:
    """Make a reader of one of the choices, in any case."""
    by_lower_case = {choice.lower(): choice for choice in choices}

    def read(value: Scalar) -> str:
        found = by_lower_case.get(str(value).strip().lower())
        if found is None:
            raise ValueError("expected one of " + ", ".join(choices))
        return found

    return read


def acks(value: Scalar) -> int:
    """Read acks as -1 (all) or 1."""
    text = str(value).strip().lower()
    if text == "0":
        raise ValueError(
            "0 is refused: without Kafka's confirmation the forwarder could never acknowledge a message; use all"
        )
    found = {"all": -1, "-1": -1, "1": 1}.get(text)
    if found is None:
        raise ValueError("expected all, -1 or 1")
    return found


def compression(value: Scalar) -> str | None:
    """Read a codec; None is aiokafka's none."""
    found: str = choice("none", "gzip", "snappy", "lz4", "zstd")(value)
    return None if found == "none" else found


def partitioner(value: Scalar) -> str:
    """Read the name of a partitioner."""
    if str(value).strip().lower() == "random":
        raise ValueError("random is refused: it breaks the order of messages; use murmur2_random")
    found: str = choice("murmur2_random", "murmur2", "consistent_random", "consistent", "fnv1a_random", "fnv1a")(value)
    return found


def idle_ms(value: Scalar) -> int | None:
    """Read the longest idle time of a connection, in milliseconds; None is never."""
    return whole(0, INT32)(value) or None  # 0 is librdkafka's "never", None is aiokafka's


def refresh_ms(value: Scalar) -> int:
    """Read the time between metadata refreshes, in milliseconds."""
    found: int = whole(-1, 3_600_000)(value)
    return found if found > 0 else 86_400_000  # "never" would leave aiokafka blind for new partitions: once a day


def ca_location(value: Scalar) -> str | None:
    """Read the path of the CA certificates; None is the system's own."""
    path = filled(value)
    return None if path == "probe" else path  # librdkafka's word for the system's own certificates


def oauth_method(value: Scalar) -> str:
    """Read where tokens come from."""
    if str(value).strip().lower() == "default":
        raise ValueError("default is refused: it means tokens that nobody signed, or a callback; use oidc")
    found: str = choice("oidc")(value)
    return found


def token_endpoint(value: Scalar) -> str:
    """Read the URL of a token endpoint."""
    url = filled(value)
    try:
        parts = urlsplit(url)
        usable = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable:
        raise ValueError("expected a URL such as https://login.example.com/oauth2/token")
    if parts.username is not None or parts.password is not None:
        raise ValueError("must not have credentials in it; use sasl.oauthbearer.client.id and .client.secret")
    return url


def extensions(value: Scalar) -> dict[str, str]:
    """Read pairs of name and value, with commas between them."""
    pairs = [_EXTENSION.fullmatch(pair.strip()) for pair in filled(value).split(",")]
    found = {pair[1]: pair[2] for pair in pairs if pair is not None}
    if len(found) != len(pairs):
        raise ValueError("expected name=value,name=value with names of letters, each once")
    return found
