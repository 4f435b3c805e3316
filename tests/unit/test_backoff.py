"""Waiting times."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.core.backoff import AFTER_TAKEOVER_SECONDS, Backoff

_chance = st.floats(0, 1, exclude_max=True)


@settings(deadline=None)
@given(chances=st.lists(_chance, min_size=1, max_size=40))
def test_every_wait_is_between_half_a_second_and_fifteen(chances: list[float]) -> None:
    backoff = Backoff(iter(chances).__next__)
    for _ in chances:
        assert 0.5 <= backoff.next_delay() <= 15.0


@settings(deadline=None)
@given(chances=st.lists(_chance, min_size=1, max_size=40))
def test_after_a_takeover_a_wait_is_between_ten_seconds_and_fifteen(chances: list[float]) -> None:
    backoff = Backoff(iter(chances).__next__)
    for _ in chances:
        assert AFTER_TAKEOVER_SECONDS <= backoff.after_takeover() <= 15.0


def test_the_ceiling_doubles_until_fifteen_seconds() -> None:
    backoff = Backoff(lambda: 1.0)
    assert [backoff.next_delay() for _ in range(7)] == [1.0, 2.0, 4.0, 8.0, 15.0, 15.0, 15.0]


def test_the_floor_stays_at_half_a_second() -> None:
    backoff = Backoff(lambda: 0.0)
    assert {backoff.next_delay() for _ in range(20)} == {0.5}


@pytest.mark.parametrize(("attempt", "ceiling"), [(1, 1.0), (3, 4.0), (6, 15.0)])
def test_waits_spread_over_the_whole_range(attempt: int, ceiling: float) -> None:
    chance = random.Random(7)  # noqa: S311 - not a secret
    waits = []
    for _ in range(2_000):
        backoff = Backoff(chance.random, attempts=attempt - 1)
        waits.append(backoff.next_delay())
    width = (ceiling - 0.5) / 10
    tenths = [sum(1 for wait in waits if int((wait - 0.5) / width) == tenth) for tenth in range(10)]
    assert min(tenths) > 120  # of 200


def test_any_number_of_attempts_can_be_counted() -> None:
    backoff = Backoff(lambda: 0.5, attempts=10**9)
    assert backoff.next_delay() == 7.75


def test_a_takeover_counts_as_an_attempt() -> None:
    backoff = Backoff(lambda: 1.0)
    assert [backoff.after_takeover() for _ in range(5)] == [10.0, 10.0, 10.0, 10.0, 15.0]


def test_a_success_begins_anew() -> None:
    backoff = Backoff(lambda: 1.0)
    for _ in range(6):
        backoff.next_delay()
    backoff.reset()
    assert backoff.next_delay() == 1.0
