"""When a sink looks at its cluster."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import pytest
import uvloop

from server.kafka.looks import STALL_SECONDS, Looks
from server.ticks import Ticks
from tests import realtime
from tests.virtualtime import in_virtual_time, now, until

if TYPE_CHECKING:
    from server.kafka.lanes import Flight


@dataclass(eq=False)
class Batch:
    """A flight, as far as its lateness goes."""

    sent_at: float


def _sent(at: float) -> Flight:
    return cast("Flight", Batch(at))


@in_virtual_time
async def test_a_look_is_due_when_it_was_planned_or_sooner() -> None:
    looks = Looks(set(), lambda: None, Ticks())
    at = now()
    looks.plan(at + 20.0)
    assert not looks.due
    await until(lambda: looks.due)
    assert now() == pytest.approx(at + 20.0, abs=0.002)
    looks.plan(at + 60.0)
    looks.sooner(at + 30.0)
    looks.sooner(at + 40.0)
    await until(lambda: looks.due)
    assert now() == pytest.approx(at + 30.0, abs=0.002)


@in_virtual_time
async def test_a_look_is_due_when_a_batch_is_late() -> None:
    flights: set[Flight] = set()
    looks = Looks(flights, lambda: None, Ticks())
    looks.plan(now() + 60.0)
    await asyncio.sleep(0.3)
    began = now()
    flights.add(_sent(began))
    looks.sent()
    await until(lambda: looks.due)
    assert now() - began == pytest.approx(STALL_SECONDS, abs=0.002)


@in_virtual_time
async def test_batches_that_are_answered_make_no_look_due() -> None:
    flights: set[Flight] = set()
    looks = Looks(flights, lambda: None, Ticks())
    began = now()
    looks.plan(now() + 60.0)
    while now() - began < 50.0:
        flight = _sent(now())
        flights.add(flight)
        looks.sent()
        await asyncio.sleep(0.2)
        flights.remove(flight)
        assert not looks.due
    await until(lambda: looks.due)
    assert now() - began == pytest.approx(60.0, abs=0.002)


@in_virtual_time
async def test_after_the_end_nothing_is_due() -> None:
    rounds: list[float] = []
    ticks = Ticks()
    looks = Looks(set(), lambda: rounds.append(now()), ticks)
    looks.end()
    looks.plan(now() + 1.0)
    looks.end()
    assert not vars(ticks)["_ticks"]
    await asyncio.sleep(5.0)
    assert rounds == []


@pytest.mark.parametrize("seconds", [0.0001, 0.0004, 0.0012])
def test_a_look_that_is_due_sooner_than_timers_can_tell(seconds: float) -> None:
    """The loop of the service, uvloop, calls at once what is due in half a millisecond, by a handle without a time."""

    async def look() -> None:
        looks = Looks({_sent(time.monotonic() - STALL_SECONDS + seconds)}, lambda: None, Ticks())
        looks.plan(time.monotonic() + 60.0)
        looks._wake()
        looks._wake_at(time.monotonic() + seconds)
        looks._wake_at(time.monotonic() + seconds / 2)
        await realtime.until(lambda: looks.due)
        looks.end()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(look())
