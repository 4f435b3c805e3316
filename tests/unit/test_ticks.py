"""Waking together: at ticks of the loop's clock, and never later than asked."""

from __future__ import annotations

import asyncio
from unittest.mock import patch

import pytest
import uvloop
from hypothesis import given
from hypothesis import strategies as st

from server.ticks import Ticks, sleep_to_tick, tick_within
from tests import realtime
from tests.virtualtime import in_virtual_time, now


@pytest.mark.parametrize(
    ("at", "seconds", "tick"),
    [
        (10.3, 1.0, 11.0),
        (11.0, 1.0, 12.0),
        (10.3, 4.9, 15.0),
        (11.3, 4.9, 16.0),
        (10.3, 5.0, 15.0),
        (11.3, 5.0, 15.0),
        (14.9, 5.0, 15.0),
        (10.0, 15.0, 25.0),
        (11.3, 15.0, 25.0),
        (10.3, 0.5, 10.8),
        (10.7, 0.5, 11.0),
    ],
)
def test_the_last_tick_within_the_time_or_else_its_end(at: float, seconds: float, tick: float) -> None:
    assert tick_within(at, seconds) == pytest.approx(tick)


@given(at=st.floats(0, 1e6), seconds=st.floats(0.001, 1e4))
def test_a_tick_is_never_late_and_less_than_a_second_early_or_five(at: float, seconds: float) -> None:
    tick = tick_within(at, seconds)
    assert at < tick <= at + seconds
    assert at + seconds - tick < (5.0 if seconds >= 5.0 else 1.0)


@given(at=st.floats(0, 1e6), seconds=st.floats(1.0, 1e4))
def test_whoever_has_a_second_wakes_at_a_whole_one_and_whoever_has_five_at_every_fifth(
    at: float, seconds: float
) -> None:
    assert tick_within(at, seconds) % (5 if seconds >= 5.0 else 1) == 0


@in_virtual_time
async def test_what_began_at_any_time_wakes_together() -> None:
    woken: list[float] = []

    async def wake(after: float) -> None:
        await asyncio.sleep(after)
        await sleep_to_tick(5.0)
        woken.append(now())

    await asyncio.gather(*(wake(after) for after in (0.1, 0.25, 0.7, 0.999)))
    assert woken == [woken[0]] * 4
    assert woken[0] % 5 == pytest.approx(0)


def _of_the_loop(ticks: Ticks) -> int:
    """How many timers it has in the loop."""
    return len(vars(ticks)["_ticks"])


@in_virtual_time
async def test_all_that_are_due_at_the_same_time_share_a_timer_of_the_loop() -> None:
    loop, ticks, at = asyncio.get_running_loop(), Ticks(), now() + 5.0
    called: list[tuple[int, float]] = []
    with patch.object(loop, "call_at", wraps=loop.call_at) as call_at:
        for name in range(100):
            ticks.call_at(at, lambda name=name: called.append((name, now())))  # type: ignore[misc]
        ticks.call_at(at + 1.0, lambda: called.append((100, now())))
    assert call_at.call_count == 2
    await asyncio.sleep(4.99)
    assert not called
    await asyncio.sleep(2.0)
    assert [name for name, _ in called] == list(range(101))
    assert [when for _, when in called] == pytest.approx([at] * 100 + [at + 1.0])
    assert not _of_the_loop(ticks)


@in_virtual_time
async def test_who_cancels_is_not_called_and_the_last_to_cancel_leaves_no_timer() -> None:
    ticks, called = Ticks(), []
    at = now() + 1.0
    first, second = (ticks.call_at(at, lambda name=name: called.append(name)) for name in "ab")  # type: ignore[misc]
    first.cancel()
    first.cancel()
    await asyncio.sleep(2.0)
    assert called == ["b"]
    second.cancel()  # it was called
    third = ticks.call_at(now() + 1.0, lambda: called.append("c"))
    assert _of_the_loop(ticks) == 1
    third.cancel()
    assert not _of_the_loop(ticks)
    await asyncio.sleep(2.0)
    assert called == ["b"]


@in_virtual_time
async def test_a_call_may_cancel_one_behind_it_and_ask_for_the_same_time_again() -> None:
    ticks, called = Ticks(), []
    at = now() + 1.0

    def first() -> None:
        called.append("first")
        ticks.call_at(at, lambda: called.append("again"))
        second.cancel()

    ticks.call_at(at, first)
    second = ticks.call_at(at, lambda: called.append("second"))
    await asyncio.sleep(2.0)
    assert called == ["first", "again"]
    assert not _of_the_loop(ticks)


@in_virtual_time
async def test_what_a_call_raises_is_told_and_the_others_are_called() -> None:
    told, called = [], []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context["exception"]))
    ticks, error = Ticks(), RuntimeError("this one")

    def fails() -> None:
        raise error

    for call in (fails, lambda: called.append("other")):
        ticks.call_at(now() + 1.0, call)
    await asyncio.sleep(2.0)
    assert told == [error]
    assert called == ["other"]


@pytest.mark.parametrize("seconds", [-1.0, 0.0, 0.0001, 0.0004, 0.002])
def test_what_is_due_sooner_than_timers_can_tell_is_called_or_cancelled(seconds: float) -> None:
    """The loop of the service, uvloop, has another kind of handle for what is due in less than half a millisecond."""
    called: list[str] = []

    async def call() -> None:
        ticks, at = Ticks(), now() + seconds
        ticks.call_at(at, lambda: called.append("other")).cancel()
        ticks.call_at(at, lambda: called.append("this"))
        await realtime.until(lambda: called)
        assert not _of_the_loop(ticks)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(call())
    assert called == ["this"]
