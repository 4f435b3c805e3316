"""Counters and rates."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.runtime.counters import RATE_SECONDS, Rates, Tally


def test_everything_is_counted_from_zero() -> None:
    tally = Tally()
    assert (tally.received, tally.delivered, tally.deduplicated, tally.dead_lettered) == (0, 0, 0, 0)
    assert (tally.mqtt_reconnects.total(), tally.sessions_lost, tally.dropped.total()) == (0, 0, 0)
    tally.dropped["shutdown"] += 2
    assert Tally().dropped == {}


def test_without_two_samples_there_is_no_rate() -> None:
    rates = Rates()
    assert rates.per_second() == (0.0, 0.0)
    rates.sample(1.0, Tally(received=5))
    assert rates.per_second() == (0.0, 0.0)
    rates.sample(1.0, Tally(received=9))
    assert rates.per_second() == (0.0, 0.0)


def test_a_rate_is_per_second() -> None:
    rates = Rates()
    rates.sample(10.0, Tally(received=100, delivered=50))
    rates.sample(12.0, Tally(received=140, delivered=70))
    assert rates.per_second() == (20.0, 10.0)


def test_what_is_long_ago_does_not_count() -> None:
    rates = Rates()
    rates.sample(0.0, Tally())
    for second in range(1, 12):
        rates.sample(float(second), Tally(received=1_000, delivered=1_000))
    assert rates.per_second() == (0.0, 0.0)


def test_after_a_gap_the_rate_begins_anew() -> None:
    rates = Rates()
    rates.sample(0.0, Tally())
    rates.sample(RATE_SECONDS * 3, Tally(received=1_000))
    assert rates.per_second() == (0.0, 0.0)


@settings(deadline=None)
@given(speed=st.integers(0, 10_000), gaps=st.lists(st.floats(0.5, 1.5), min_size=2, max_size=30))
def test_a_steady_stream_has_a_steady_rate(speed: int, gaps: list[float]) -> None:
    rates, now = Rates(), 100.0
    for gap in gaps:
        now += gap
        rates.sample(now, Tally(received=int(now * speed * 1_000), delivered=int(now * speed * 500)))
    received, delivered = rates.per_second()
    assert received == pytest.approx(speed * 1_000, abs=3)
    assert delivered == pytest.approx(speed * 500, abs=3)
