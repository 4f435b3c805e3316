"""The event loop's lag: what blocks it is seen."""

from __future__ import annotations

import asyncio
import time

import pytest

from server.runtime.lag import LoopLag
from server.tasks import ended
from tests.realtime import until


def test_a_lag_is_counted_in_its_bucket_and_all_above() -> None:
    lag = LoopLag()
    for seconds in (0.0, 0.001, 0.003, 99.0):
        lag.note(seconds)
    buckets = dict(lag.buckets())
    assert buckets["0.001"] == 2
    assert buckets["0.005"] == 3
    assert buckets["2.5"] == 3
    assert buckets["+Inf"] == 4
    assert lag.total == pytest.approx(99.004)


async def test_what_blocks_the_loop_is_seen() -> None:
    lag, told = LoopLag(), list[float]()
    watching = asyncio.create_task(lag.watch(told.append))
    await until(lambda: lag.buckets()[-1][1])
    time.sleep(1.2)  # twice as long as from one sample to the next, and more
    await until(lambda: lag.total > 0.5)
    assert sum(told) == pytest.approx(lag.total)
    await ended(watching)
