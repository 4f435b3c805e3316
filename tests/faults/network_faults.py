"""The network between the service and either broker: cut, reset, half-open, late, in crumbs, slow."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from tests.faults.proxy import PARTITION, Direction

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tests.faults.proxy import Proxy
    from tests.faults.run import Case, Run


def mqtt_side(run: Run) -> list[Proxy]:
    """The proxy to the MQTT broker."""
    return [run.mqtt]


def kafka_side(run: Run) -> list[Proxy]:
    """The proxies to Kafka's nodes."""
    return run.kafka_links


def partition(side: Callable[[Run], list[Proxy]]) -> Callable[[Run, Case], Awaitable[None]]:
    """Nothing gets through, and nobody is told."""

    async def cut(run: Run, case: Case) -> None:
        for proxy in side(run):
            proxy.change(PARTITION)
        await asyncio.sleep(case.seconds(5, 60))
        for proxy in side(run):
            proxy.change()

    return cut


def reset(side: Callable[[Run], list[Proxy]]) -> Callable[[Run, Case], Awaitable[None]]:
    """Every connection is reset, three times."""

    async def torn(run: Run, case: Case) -> None:
        for _ in range(3):
            for proxy in side(run):
                await proxy.reset()
            await asyncio.sleep(case.seconds(0.2, 5, quick=1))

    return torn


async def reset_while_kafka_is_late(run: Run, case: Case) -> None:
    """The MQTT connections are reset while messages wait for Kafka: nothing of these may be produced again."""
    for proxy in kafka_side(run):
        proxy.change(latency=0.5)
    await asyncio.sleep(1.5)  # what follows has to find the network like this
    await reset(mqtt_side)(run, case)
    for proxy in kafka_side(run):
        proxy.change()


def half_open(side: Callable[[Run], list[Proxy]]) -> Callable[[Run, Case], Awaitable[None]]:
    """One end of every connection is gone and the other does not know; new ones are fine.

    The end that does not know is the service, or in every third turn the broker.
    """

    async def forgotten(run: Run, case: Case) -> None:
        for proxy in side(run):
            await proxy.half_open(Direction.UP if case.turn % 3 == 2 else Direction.DOWN)
        await asyncio.sleep(case.seconds(5, 180))
        for proxy in side(run):
            proxy.let_go()

    return forgotten


def conditions(
    side: Callable[[Run], list[Proxy]], make: Callable[[Case], dict[str, Any]]
) -> Callable[[Run, Case], Awaitable[None]]:
    """The network is as `make` says for a while."""

    async def bad(run: Run, case: Case) -> None:
        changes = make(case)
        for proxy in side(run):
            proxy.change(**changes)
        await asyncio.sleep(case.seconds(5, 30))
        for proxy in side(run):
            proxy.change()

    return bad


def late(case: Case) -> dict[str, Any]:
    """100 to 2000 ms each way."""
    return {"latency": case.random.uniform(0.1, 2.0)}


def crumbs(_: Case) -> dict[str, Any]:
    """One byte at a time."""
    return {"bytewise": True}


def slow(case: Case) -> dict[str, Any]:
    """A few kilobytes a second, less than the load needs."""
    return {"rate": case.random.uniform(5_000.0, 40_000.0)}
