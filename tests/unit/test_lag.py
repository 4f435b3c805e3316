"""The event loop's lag: what blocks it is seen."""

from __future__ import annotations

import asyncio
import time
from types import SimpleNamespace

import pytest

from server.runtime.lag import LoopLag
from server.tasks import ended
from tests.virtualtime import in_virtual_time, now


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
    lag = LoopLag()
    watching = asyncio.create_task(lag.watch())
    await asyncio.sleep(0.1)
    time.sleep(0.5)
    while not lag.buckets()[-1][1]:
        await asyncio.sleep(0.01)
    await ended(watching)
    assert lag.total > 0.2


@pytest.mark.parametrize(("cores", "samples"), [(0.02, 10), (0.5, 40)])
@in_virtual_time
async def test_a_process_that_is_busy_is_measured_more_often(
    monkeypatch: pytest.MonkeyPatch, cores: float, samples: int
) -> None:
    began = now()
    monkeypatch.setattr("server.runtime.lag.time", SimpleNamespace(process_time=lambda: (now() - began) * cores))
    lag = LoopLag()
    watching = asyncio.create_task(lag.watch())
    await asyncio.sleep(10.1)
    await ended(watching)
    assert samples <= lag.buckets()[-1][1] <= samples + 1
