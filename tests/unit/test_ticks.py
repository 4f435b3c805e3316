"""Waking together: at whole seconds of the loop's clock, and never later than asked."""

from __future__ import annotations

import asyncio
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.ticks import sleep_to_tick, tick_within
from tests.virtualtime import in_virtual_time, now


@pytest.mark.parametrize(
    ("at", "seconds", "tick"),
    [
        (10.3, 1.0, 11.0),
        (11.0, 1.0, 12.0),
        (10.3, 15.0, 25.0),
        (10.0, 15.0, 25.0),
        (10.3, 0.5, 10.8),
        (10.7, 0.5, 11.0),
    ],
)
def test_the_last_whole_second_within_the_time_or_else_its_end(at: float, seconds: float, tick: float) -> None:
    assert tick_within(at, seconds) == pytest.approx(tick)


@given(at=st.floats(0, 1e6), seconds=st.floats(0.001, 1e4))
def test_a_tick_is_never_late_and_less_than_a_second_early(at: float, seconds: float) -> None:
    tick = tick_within(at, seconds)
    assert at < tick <= at + seconds
    assert at + seconds - tick < 1.0


@given(at=st.floats(0, 1e6), seconds=st.floats(1.0, 1e4))
def test_whoever_has_a_second_wakes_at_a_whole_one(at: float, seconds: float) -> None:
    tick = tick_within(at, seconds)
    assert tick == math.floor(tick)


@in_virtual_time
async def test_what_began_at_any_time_wakes_together() -> None:
    woken: list[float] = []

    async def wake(after: float) -> None:
        await asyncio.sleep(after)
        await sleep_to_tick(5.0)
        woken.append(now())

    await asyncio.gather(*(wake(after) for after in (0.1, 0.25, 0.7, 0.999)))
    assert woken == [woken[0]] * 4
    assert woken[0] == pytest.approx(math.floor(woken[0]))
