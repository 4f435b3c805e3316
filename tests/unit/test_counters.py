"""Counters and rates: of the seconds just past, whoever asks."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.runtime.counters import RATE_SECONDS, Rate, Tally


def test_everything_is_counted_from_zero() -> None:
    tally = Tally()
    assert (tally.received, tally.delivered, tally.deduplicated, tally.dead_lettered) == (0, 0, 0, 0)
    assert (tally.mqtt_reconnects.total(), tally.sessions_lost, tally.dropped.total()) == (0, 0, 0)
    tally.dropped["shutdown"] += 2
    assert Tally().dropped == {}


def test_a_rate_is_of_the_last_seconds_also_while_it_begins() -> None:
    rate = Rate()
    assert rate.per_second(100.0) == 0.0
    rate.note(100.0, 50)
    rate.note(100.5, 50)
    assert rate.per_second(101.0) == 100 / RATE_SECONDS


def test_what_is_long_ago_does_not_count() -> None:
    rate = Rate()
    rate.note(100.0, 1_000)
    assert rate.per_second(100.9 + RATE_SECONDS) > 0.0
    assert rate.per_second(101.0 + RATE_SECONDS) == 0.0


@pytest.mark.parametrize("gap", [RATE_SECONDS + 1, RATE_SECONDS * 3, 1_000_000])
def test_after_a_gap_the_rate_begins_anew(gap: int) -> None:
    rate = Rate()
    for second in range(100, 110):
        rate.note(float(second), 1_000)
    rate.note(109.0 + gap, 5)
    assert rate.per_second(109.0 + gap) == 5 / RATE_SECONDS


@settings(deadline=None)
@given(noted=st.lists(st.tuples(st.floats(0.0, 3.0), st.integers(0, 1_000)), max_size=30), after=st.floats(0.0, 9.0))
def test_a_rate_is_what_was_counted_since_a_whole_second(noted: list[tuple[float, int]], after: float) -> None:
    rate, now, all_of_them = Rate(), 100.0, []
    for gap, messages in noted:
        now += gap
        rate.note(now, messages)
        all_of_them.append((now, messages))
    now += after
    since = int(now) - RATE_SECONDS
    counted = sum(messages for at, messages in all_of_them if at >= since)
    assert rate.per_second(now) == pytest.approx(counted / (now - since))


@settings(deadline=None)
@given(speed=st.integers(0, 10_000), began=st.floats(100.0, 101.0))
def test_a_steady_stream_has_a_steady_rate(speed: int, began: float) -> None:
    rate = Rate()
    for tenth in range(100):
        rate.note(began + tenth / 10, speed)
    assert rate.per_second(began + 10) == pytest.approx(speed * 10, rel=0.03)
