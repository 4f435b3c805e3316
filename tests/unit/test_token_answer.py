"""What a token endpoint answers."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.core.token_answer import DEFAULT_LIFETIME_SECONDS, Token, TokenRefusedError, read_token

NOW = 1_000_000.0
_SECRET = "hunter2"


def _read(answer: Any, status: int = 200, secret: str = _SECRET) -> Token:
    body = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
    return read_token(status, body, now=NOW, secret=secret)


def _jwt(claims: object) -> str:
    return f"e30.{base64.urlsafe_b64encode(json.dumps(claims).encode()).rstrip(b'=').decode()}.c2ln"


@pytest.mark.parametrize("seconds", [60, 60.0, "60"])
def test_a_token_lives_as_long_as_the_answer_says(seconds: object) -> None:
    assert _read({"access_token": "abc", "expires_in": seconds}) == Token("abc", 60.0)


def test_without_that_it_lives_as_long_as_it_says_itself() -> None:
    assert _read({"access_token": _jwt({"exp": NOW + 90})}).lifetime == 90.0


@pytest.mark.parametrize("token", ["opaque", "a.b.c", _jwt([]), _jwt({}), _jwt({"exp": "soon"})])
@pytest.mark.parametrize(
    "more",
    [
        {},
        {"expires_in": None},
        {"expires_in": "soon"},
        {"expires_in": "nan"},
        {"expires_in": "inf"},
        {"expires_in": True},
    ],
)
def test_where_nothing_says_how_long_it_lives_it_is_not_for_long(token: str, more: dict[str, object]) -> None:
    assert _read({"access_token": token} | more).lifetime == DEFAULT_LIFETIME_SECONDS


@pytest.mark.parametrize("answer", [{"access_token": "abc", "expires_in": 0}, {"access_token": _jwt({"exp": NOW - 1})}])
def test_a_token_that_is_over_is_refused(answer: dict[str, object]) -> None:
    with pytest.raises(TokenRefusedError, match="over already"):
        _read(answer)


@pytest.mark.parametrize(
    "answer",
    [b"", b"<html>", b"[" * 100_000, [], {}, {"access_token": ""}, {"access_token": 1}, {"access_token": "a\u0001b"}],
)
def test_an_answer_without_a_token_is_refused(answer: object) -> None:
    with pytest.raises(TokenRefusedError, match="is it the URL of a token endpoint"):
        _read(answer)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b"<html>", "answered 400"),
        ({"error": "invalid_client"}, "answered 400, it says 'invalid_client'"),
        ({"error": "e", "error_description": "no\nsuch\tclient"}, "answered 400, it says 'e: no such client'"),
        ({"error": "e", "error_description": "hunter2?"}, "answered 400, it says 'e: ***?'"),
        ({"error": "e", "error_description": 7}, "answered 400, it says 'e'"),
        ({"error": 'quote"'}, "answered 400"),
        ({"error": 7}, "answered 400"),
    ],
)
def test_a_refusal_says_what_the_endpoint_says(answer: object, said: str) -> None:
    with pytest.raises(TokenRefusedError) as refused:
        _read(answer, status=400)
    assert str(refused.value) == said


def test_a_refusal_is_short_and_an_empty_secret_hides_nothing() -> None:
    with pytest.raises(TokenRefusedError) as refused:
        _read({"error": "e", "error_description": "x" * 10_000}, status=500, secret="")
    assert len(str(refused.value)) < 250


@given(
    status=st.sampled_from([200, 400]),
    body=st.binary(max_size=64)
    | st.recursive(
        st.none() | st.booleans() | st.floats(allow_nan=False) | st.text(),
        lambda inner: st.dictionaries(
            st.sampled_from(["access_token", "expires_in", "error", "error_description"]), inner
        ),
        max_leaves=5,
    ).map(lambda value: json.dumps(value).encode()),
)
def test_whatever_comes_it_is_a_token_or_refused(status: int, body: bytes) -> None:
    try:
        token = read_token(status, body, now=NOW, secret=_SECRET)
    except TokenRefusedError:
        return
    assert status == 200
    assert token.lifetime > 0


def test_a_token_does_not_show() -> None:
    assert "abc" not in repr(Token("abc", 1.0))
