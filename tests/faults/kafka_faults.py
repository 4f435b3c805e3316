"""Kafka killed and restarted, its topics changed, its leaders moved or gone."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from tests.faults.history import Excuse

if TYPE_CHECKING:
    from tests.faults.run import Case, Run

# Until every node has heard of it.
_GONE_SECONDS = 1.0


async def kill(run: Run, _: Case) -> None:
    """SIGKILL for every node, and a start."""
    await asyncio.to_thread(run.kafka.kill)
    await asyncio.to_thread(run.kafka.start)


async def restart(run: Run, _: Case) -> None:
    """SIGTERM for every node, and a start."""
    await asyncio.to_thread(run.kafka.stop)
    await asyncio.to_thread(run.kafka.start)


async def recreate_topic(run: Run, case: Case) -> None:
    """Delete a topic of every service, and create it again a little later."""
    for mapping in _movable(run):
        since = time.time()
        await run.keep_records(mapping)
        await run.kafka.delete_topic(run.topic(mapping))
        excuse = Excuse("the topic was deleted", "in flight", since, time.time() + _GONE_SECONDS, mapping)
        run.history.excuses.append(excuse)
    await asyncio.sleep(case.seconds(0.0, 10.0, quick=2.0))
    for mapping in _movable(run):
        await run.create_topic(mapping)


async def add_partitions(run: Run, _: Case) -> None:
    """Give a topic of every service two partitions more."""
    for mapping in _movable(run):
        topic = run.topic(mapping)
        await run.kafka.add_partitions(topic, len(await run.kafka.end_offsets(topic)) + 2)


async def move_leader(run: Run, case: Case) -> None:
    """Stop node 2 in order, so that what it leads moves to node 1; some time later it moves back."""
    await asyncio.to_thread(run.kafka.nodes[1].stop)
    await asyncio.sleep(case.seconds(1, 20, quick=2))
    await asyncio.to_thread(run.kafka.nodes[1].start)


async def no_leader(run: Run, case: Case) -> None:
    """Kill node 2, which alone has a partition of every QoS 2 mapping's topic."""
    await asyncio.to_thread(run.kafka.nodes[1].kill)
    await asyncio.sleep(case.seconds(50, 70, quick=7))
    await asyncio.to_thread(run.kafka.nodes[1].start)


async def freeze(run: Run, case: Case) -> None:
    """SIGSTOP for every node."""
    for node in run.kafka.nodes:
        node.pause()
    await asyncio.sleep(case.seconds(20, 40, quick=8))
    for node in run.kafka.nodes:
        node.resume()


def _movable(run: Run) -> list[str]:
    return [mapping for mapping in run.mappings if mapping.endswith("/qos1")]
