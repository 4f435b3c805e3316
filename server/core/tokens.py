"""API tokens: their form, their scopes, how long they last, and how a request carries one.

A token is `mkf_` and 256 random bits. Only its SHA-256 is kept: what makes password hashes slow and salted is that
passwords can be guessed, and 256 random bits can't be, so a fast hash tells a thief of the database nothing.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from base64 import urlsafe_b64encode
from datetime import timedelta
from enum import StrEnum

PREFIX = "mkf_"
SECRET_BYTES = 32
# What an operator sets as the first admin token must not be guessable either; 32 characters of hex are 128 bits.
LEAST_CHARACTERS = 32
_MOST_CHARACTERS = 1024
_SECRET = re.compile(r"[\x21-\x7e]+")
_BEARER = re.compile(r"bearer +(?P<secret>[\x21-\x7e]+) *", re.IGNORECASE)
_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._@-]{0,62}[A-Za-z0-9])?")
_LIFETIME = re.compile(r"(?P<count>[1-9][0-9]{0,5})(?P<unit>[smhdw])")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
_LONGEST = timedelta(days=36_500)


class Scope(StrEnum):
    """What a token may do: each scope includes the ones before it."""

    READ = "read"
    WRITE = "write"
    ADMIN = "admin"

    def includes(self, needed: Scope) -> bool:
        """Whether who has this scope may do what needs that one."""
        return _ORDER.index(self) >= _ORDER.index(needed)


_ORDER = list(Scope)


class MalformedTokenError(ValueError):
    """An Authorization header without a bearer token; the message does not repeat it."""


def new_token(random: bytes) -> str:
    """The token made of `random`, which is SECRET_BYTES from the operating system's generator.

    Raises:
        ValueError: it is shorter or longer.
    """
    if len(random) != SECRET_BYTES:
        raise ValueError(f"a token is made of {SECRET_BYTES} bytes, not {len(random)}")
    return PREFIX + urlsafe_b64encode(random).rstrip(b"=").decode()


def hash_of(token: str) -> str:
    """What is kept of a token, and compared."""
    return hashlib.sha256(token.encode()).hexdigest()


def same(one: str, other: str) -> bool:
    """Whether two hashes are equal, in a time that does not tell how much of them is."""
    return hmac.compare_digest(one.encode(), other.encode())


def bearer(header: str) -> str:
    """The token of an Authorization header (RFC 6750).

    Raises:
        MalformedTokenError: there is none.
    """
    found = _BEARER.fullmatch(header)
    if found is None or len(found["secret"]) > _MOST_CHARACTERS:
        raise MalformedTokenError("the Authorization header is not 'Bearer' and one token")
    return found["secret"]


def check_chosen(token: str) -> None:
    """See that a token that somebody has chosen can't be guessed and can be sent.

    Raises:
        ValueError: it is too short, or has characters a header can't carry; the message does not repeat it.
    """
    if len(token) < LEAST_CHARACTERS:
        raise ValueError(
            f"it has {len(token)} characters, at least {LEAST_CHARACTERS} are needed; make one by: openssl rand -hex 32"
        )
    if len(token) > _MOST_CHARACTERS or not _SECRET.fullmatch(token):
        raise ValueError(
            f"it must be of at most {_MOST_CHARACTERS} printable ASCII characters without spaces; make one by:"
            " openssl rand -hex 32"
        )


def check_name(name: str) -> str:
    """See that a token's name can stand in an event and a log as it is, and return it.

    Raises:
        ValueError: it can't.
    """
    if not _NAME.fullmatch(name):
        raise ValueError(
            "a token's name has 1 to 64 letters, digits and . _ - @, with a letter or a digit first and last"
        )
    return name


def lifetime(text: str) -> timedelta:
    """How long `90d` is; units are s, m, h, d and w.

    Raises:
        ValueError: it is no such time, or longer than 100 years.
    """
    found = _LIFETIME.fullmatch(text)
    if found is None:
        raise ValueError(f"{text!r} is not a time such as 90d, 12h or 30m")
    length = timedelta(**{_UNITS[found["unit"]]: int(found["count"])})
    if length > _LONGEST:
        raise ValueError(f"{text!r} is longer than 100 years; leave it out for a token that does not expire")
    return length
