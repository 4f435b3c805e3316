"""What a token endpoint answers (RFC 6749, 5): a token, or why there is none."""

from __future__ import annotations

import base64
import binascii
import json
import math
import re
from dataclasses import dataclass, field
from typing import Any

DEFAULT_LIFETIME_SECONDS = 300.0
# As in Kafka's own client: a new token is asked for when this much of the old one's life is over.
RENEW_AFTER = 0.8
_OK = 200
_TOKEN = re.compile(r"[A-Za-z0-9._~+/-]+=*")  # RFC 6750, 2.1; anything else could break out of the login message
_ERROR = re.compile(r"[\x20\x21\x23-\x5b\x5d-\x7e]{1,100}")
_DESCRIPTION_LENGTH = 200


class TokenRefusedError(ValueError):
    """The answer has no token that can be used; the message says why, and has no secret in it."""


@dataclass(frozen=True, slots=True)
class Token:
    """An access token, and for how many seconds it is valid from when it was asked for."""

    value: str = field(repr=False)
    lifetime: float


def read_token(status: int, body: bytes, *, now: float, secret: str) -> Token:
    """Read the answer of a token endpoint; `now` is the time of day in seconds since 1970.

    Raises:
        TokenRefusedError: it refuses, or this is not the answer of a token endpoint.
    """
    answer = _json_object(body)
    if status != _OK:
        raise TokenRefusedError(f"answered {status}{_explanation(answer, secret)}")
    value = answer.get("access_token")
    if not isinstance(value, str) or not _TOKEN.fullmatch(value):
        raise TokenRefusedError("answered without a usable access_token: is it the URL of a token endpoint?")
    lifetime = _lifetime(answer.get("expires_in"), value, now)
    if lifetime <= 0:
        raise TokenRefusedError("gave a token that is over already: does the clock of this machine agree with it?")
    return Token(value, lifetime)


def _json_object(body: bytes) -> dict[str, Any]:
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _explanation(answer: dict[str, Any], secret: str) -> str:
    error, description = answer.get("error"), answer.get("error_description")
    if not isinstance(error, str) or not _ERROR.fullmatch(error):
        return ""
    said = f"{error}: {description}" if isinstance(description, str) else error
    said = " ".join("".join(letter if letter.isprintable() else " " for letter in said).split())
    said = said.replace(secret, "***") if secret else said
    return f", it says {said[:_DESCRIPTION_LENGTH]!r}"


def _lifetime(expires_in: object, token: str, now: float) -> float:
    """The seconds that the answer says, or else those until the time in the token itself."""
    try:
        if isinstance(expires_in, int | float | str) and not isinstance(expires_in, bool):
            seconds = float(expires_in)
        else:
            claims = token.split(".")[1]
            seconds = float(json.loads(base64.urlsafe_b64decode(claims + "=" * (-len(claims) % 4)))["exp"]) - now
        return seconds if math.isfinite(seconds) else DEFAULT_LIFETIME_SECONDS
    except (IndexError, KeyError, TypeError, ValueError, OverflowError, RecursionError, binascii.Error):
        return DEFAULT_LIFETIME_SECONDS  # not a JWT: nothing says when it ends
