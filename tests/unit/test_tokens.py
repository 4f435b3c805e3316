"""API tokens: what they look like, what they may do, and what is no token."""

from __future__ import annotations

import contextlib
import re
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.core.tokens import (
    LEAST_CHARACTERS,
    SECRET_BYTES,
    MalformedTokenError,
    Scope,
    bearer,
    check_chosen,
    check_name,
    hash_of,
    lifetime,
    new_token,
    same,
)

PRINTABLE = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=200)


@given(st.binary(min_size=SECRET_BYTES, max_size=SECRET_BYTES))
def test_a_token_holds_all_its_random_bits_and_can_be_sent(random: bytes) -> None:
    token = new_token(random)
    assert re.fullmatch(r"mkf_[A-Za-z0-9_-]{43}", token)
    assert bearer(f"Bearer {token}") == token
    check_chosen(token)
    other = bytes([random[0] ^ 1]) + random[1:]
    assert new_token(other) != token


@pytest.mark.parametrize("length", [0, 31, 33])
def test_a_token_is_not_made_of_fewer_or_more_bits(length: int) -> None:
    with pytest.raises(ValueError, match=f"32 bytes, not {length}"):
        new_token(bytes(length))


def test_what_is_kept_of_a_token_is_its_sha_256() -> None:
    assert hash_of("abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


@given(PRINTABLE, PRINTABLE)
def test_hashes_are_the_same_if_the_tokens_are(one: str, other: str) -> None:
    assert same(hash_of(one), hash_of(other)) is (one == other)


def test_each_scope_includes_the_smaller_ones() -> None:
    included = {scope: [each for each in Scope if scope.includes(each)] for scope in Scope}
    assert included == {
        Scope.READ: [Scope.READ],
        Scope.WRITE: [Scope.READ, Scope.WRITE],
        Scope.ADMIN: [Scope.READ, Scope.WRITE, Scope.ADMIN],
    }


@pytest.mark.parametrize("header", ["Bearer abc", "bearer abc", "BEARER   abc  "])
def test_a_header_carries_a_token_whatever_the_case_of_its_scheme(header: str) -> None:
    assert bearer(header) == "abc"


@pytest.mark.parametrize(
    "header",
    ["", "Bearer", "Bearer ", "Basic abc", "abc", "Bearer a b", "Bearer a\tb", "Bearer ä", "Bearer a, Bearer b"],
)
def test_a_header_without_one_token_is_malformed_and_not_repeated(header: str) -> None:
    with pytest.raises(MalformedTokenError) as caught:
        bearer(header)
    assert str(caught.value) == "the Authorization header is not 'Bearer' and one token"


@given(st.text(max_size=50))
def test_any_header_is_a_token_or_malformed(header: str) -> None:
    with contextlib.suppress(MalformedTokenError):
        assert bearer(header) in header


def test_a_token_beyond_all_reason_is_malformed() -> None:
    assert len(bearer("Bearer " + "x" * 1024)) == 1024
    with pytest.raises(MalformedTokenError):
        bearer("Bearer " + "x" * 1025)


@given(PRINTABLE)
def test_a_chosen_token_is_refused_exactly_if_it_is_too_short(token: str) -> None:
    if len(token) >= LEAST_CHARACTERS:
        check_chosen(token)
    else:
        with pytest.raises(ValueError, match=f"it has {len(token)} characters, at least 32") as caught:
            check_chosen(token)
        assert len(token) < 9 or token not in str(caught.value)


@pytest.mark.parametrize("token", ["secret token with spaces in it, long", "ü" * 40, "x" * 1025, "x" * 40 + "\n"])
def test_a_chosen_token_that_can_not_be_sent_is_refused_and_not_repeated(token: str) -> None:
    with pytest.raises(ValueError, match="printable ASCII characters without spaces") as caught:
        check_chosen(token)
    assert token not in str(caught.value)


@pytest.mark.parametrize("name", ["a", "ci", "ci.2", "team-a@plant_1", "x" * 64])
def test_names_that_read_well_are_accepted(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize("name", ["", " ", "a b", "-a", "a.", "ä", "a\n", "x" * 65, "admin (environment)", "a/b"])
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="1 to 64 letters, digits"):
        check_name(name)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("45s", timedelta(seconds=45)),
        ("30m", timedelta(minutes=30)),
        ("12h", timedelta(hours=12)),
        ("90d", timedelta(days=90)),
        ("52w", timedelta(weeks=52)),
    ],
)
def test_lifetimes_are_a_number_and_a_unit(text: str, expected: timedelta) -> None:
    assert lifetime(text) == expected


@pytest.mark.parametrize("text", ["", "90", "d", "0d", "-1d", "1.5h", "90 d", "1y", "1d1h", "9999999d", "٣d"])
def test_what_is_no_lifetime_says_what_would_be(text: str) -> None:
    with pytest.raises(ValueError, match="is not a time such as 90d"):
        lifetime(text)


def test_a_lifetime_no_calendar_holds_is_refused() -> None:
    with pytest.raises(ValueError, match="longer than 100 years"):
        lifetime("999999d")
