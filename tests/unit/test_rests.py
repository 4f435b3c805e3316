"""Rests: readers rest longer while the event loop is late, and only then."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.core.rests import (
    GATHERED,
    GATHERED_BYTES,
    LATE_SAMPLES,
    LATE_SECONDS,
    LONGER,
    LONGEST_SECONDS,
    MUCH,
    SECONDS_PER_READER,
    Rests,
)

SHORTEST = 0.006
LATE, IN_TIME = LATE_SECONDS * 2, LATE_SECONDS / 2


def _after(rests: Rests, messages: int, size: int) -> float:
    return rests.after(messages, size, full=False)


def _sampled(rests: Rests, lag: float, times: int, readers: int = 1_000) -> float:
    for _ in range(times):
        rests.sampled(lag, readers)
    return rests.seconds


def test_a_loop_in_time_rests_as_short_as_it_may() -> None:
    assert _sampled(Rests(SHORTEST), IN_TIME, 1_000) == SHORTEST


def test_a_loop_that_is_late_for_a_second_rests_longer_and_longer() -> None:
    rests = Rests(SHORTEST)
    assert _sampled(rests, LATE, LATE_SAMPLES - 1) == SHORTEST
    assert _sampled(rests, LATE, 1) > SHORTEST
    assert _sampled(rests, LATE, 40) == pytest.approx(1_000 * SECONDS_PER_READER)


def test_what_makes_it_late_now_and_then_changes_nothing() -> None:
    rests = Rests(SHORTEST)
    for _ in range(100):
        assert _sampled(rests, LATE, LATE_SAMPLES - 1) == SHORTEST
        _sampled(rests, IN_TIME, 1)


def test_once_it_is_in_time_again_rests_become_short_again() -> None:
    rests = Rests(SHORTEST)
    longest = _sampled(rests, LATE, 40)
    assert SHORTEST < _sampled(rests, IN_TIME, 20) < longest
    assert _sampled(rests, IN_TIME, 300) == SHORTEST


def test_a_read_that_brought_many_is_followed_by_a_shorter_rest() -> None:
    rests = Rests(SHORTEST)
    longest = _sampled(rests, LATE, 40)
    assert _after(rests, 1, 600) == _after(rests, GATHERED, GATHERED_BYTES) == longest
    assert _after(rests, 5 * GATHERED, 600) == pytest.approx(longest / 25)
    assert _after(rests, 1, 4 * GATHERED_BYTES) == pytest.approx(longest / 4)
    assert _after(rests, 100_000, 10**8) == SHORTEST * LONGER


def test_the_shortest_rest_is_longer_where_much_comes_and_there_is_room_for_more() -> None:
    rests = Rests(SHORTEST)
    assert _after(rests, 1, 600) == _after(rests, MUCH, 600) == SHORTEST
    assert _after(rests, MUCH + 1, 600) == _after(rests, 100_000, 10**8) == SHORTEST * LONGER
    assert rests.after(MUCH + 1, 600, full=True) == SHORTEST


def test_few_readers_never_rest_longer() -> None:
    assert _sampled(Rests(SHORTEST), LATE, 100, readers=int(SHORTEST / SECONDS_PER_READER)) == SHORTEST


def test_when_readers_go_so_do_their_rests() -> None:
    rests = Rests(SHORTEST)
    _sampled(rests, LATE, 40)
    assert _sampled(rests, LATE, 1, readers=100) == pytest.approx(100 * SECONDS_PER_READER)


@pytest.mark.parametrize("rests", [Rests(SHORTEST, fixed=True), Rests(0.0)], ids=["configured", "none"])
def test_what_is_configured_never_changes(rests: Rests) -> None:
    before = rests.seconds
    assert _sampled(rests, LATE, 100) == before
    assert _after(rests, 1, 600) == _after(rests, 100_000, 10**8) == before


@given(st.lists(st.tuples(st.floats(0, 10), st.integers(0, 5_000), st.integers(1, 10_000), st.integers(1, 10**8))))
def test_a_rest_is_never_shorter_than_the_shortest_nor_longer_than_the_readers_are_worth(
    samples: list[tuple[float, int, int, int]],
) -> None:
    rests = Rests(SHORTEST)
    for lag, readers, messages, size in samples:
        rests.sampled(lag, readers)
        assert SHORTEST <= _after(rests, messages, size) <= max(rests.seconds, SHORTEST * LONGER)
        assert _after(rests, 1, 600) == rests.seconds
        assert rests.seconds <= max(SHORTEST, min(SECONDS_PER_READER * readers, LONGEST_SECONDS))


@pytest.mark.parametrize(("cost", "each"), [(0.0002, 5), (0.0001, 10), (0.00015, 10), (0.00015, 50)])
def test_a_process_with_more_to_do_than_time_comes_to_have_time_to_spare(cost: float, each: int) -> None:
    """`cost` seconds for whatever is read at once, and 1,000 readers with `each` messages a second."""
    rests, busy = Rests(SHORTEST), list[float]()
    for _ in range(400):
        messages = max(1.0, _after(rests, 1, 600) * each)
        for _ in range(50):  # a rest depends on what the one before brought
            messages = max(1.0, _after(rests, round(messages), 600) * each)
        load = 1_000 * each / messages * cost
        busy.append(load)
        rests.sampled(0.2 if load >= 1 else IN_TIME, 1_000)
    settled = busy[100:]
    assert sum(load < 1 for load in settled) > 0.6 * len(settled)
    assert sum(settled) < 0.95 * len(settled)
