"""How much memory the service takes with Kafka stopped and publishers that never end (design.md, invariant 6).

`python -m tests.faults.memory`, or `make chaos-memory`: every combination, for ten minutes each.
"""

from __future__ import annotations

import asyncio
import functools
import itertools
import tempfile
from concurrent.futures import ProcessPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tests.brokers import MqttBroker
from tests.fakebroker import PINGREQ, PINGRESP, SUBSCRIBE, Dialect, Peer, fake_broker
from tests.faults.mock_kafka import MockKafka
from tests.forwarding import check_books
from tests.service import UNMEASURED, Service

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

MEGABYTE = 1_000_000
# The process's own share, as docs/decisions/0010 measures it.
BESIDE_BUDGETS = 100 * MEGABYTE
MEMORY_BUDGET = 128 * MEGABYTE
BUFFER = 32 * 1024 * 1024
RECEIVE_MAXIMUM = 65_534
_LOOK_SECONDS = 0.2
# Eight services with 200 mappings each may start at once, 8 s of CPU each on a slow machine.
_START_SECONDS = 120.0
_BLOCK_BYTES = 64 * 1024
_CONNECTIONS_BYTES = 64 * 1024  # measured with 1,000 mappings: docs/benchmarks
_PACKET_BYTES = 12  # of a PUBLISH without its payload
_DIALECT = Dialect("5")


@dataclass(frozen=True)
class Peak:
    """What a run took at most, and what it may take (bytes); `received` is how many messages the service took in."""

    private: int
    allowed: int
    received: int

    def __str__(self) -> str:
        return f"{self.private / MEGABYTE:.0f} MB of {self.allowed / MEGABYTE:.0f} MB, {self.received} messages"


@asynccontextmanager
async def endless_broker(payload: bytes, qos: int, begin: asyncio.Event) -> AsyncIterator[MqttBroker]:
    """Listen, and from `begin` on send each client messages without end.

    At QoS 1 as many as it may get unacknowledged, which is the end of it: nothing is acknowledged without Kafka.
    """
    serving: set[asyncio.Task[None]] = set()

    async def accept() -> None:
        while True:
            serving.add(asyncio.create_task(_serve(await broker.next_peer(), payload, qos, begin)))

    async with fake_broker() as broker:
        serving.add(asyncio.create_task(accept()))
        try:
            yield MqttBroker(broker.host, broker.port)
        finally:
            for task in serving:
                task.cancel()
            await asyncio.wait(serving)


async def _serve(peer: Peer, payload: bytes, qos: int, begin: asyncio.Event) -> None:
    await peer.next_packet()
    peer.write(_DIALECT.connack())
    sending: asyncio.Task[None] | None = None
    try:
        while True:
            asked = await peer.next_packet()
            if asked.kind == SUBSCRIBE:
                peer.write(_DIALECT.suback(asked.packet_id, qos))
                sending = asyncio.create_task(_send(peer, payload, qos, begin))
            elif asked.kind == PINGREQ:
                peer.write(PINGRESP)
    except (ConnectionError, asyncio.CancelledError):
        peer.close()
    finally:
        if sending is not None:
            sending.cancel()


async def _send(peer: Peer, payload: bytes, qos: int, begin: asyncio.Event) -> None:
    """Send as a broker with a long queue does: as much at once as TCP takes."""
    await begin.wait()
    size = max(1, _BLOCK_BYTES // (len(payload) + _PACKET_BYTES))
    for first in itertools.count(1, size) if qos == 0 else range(1, RECEIVE_MAXIMUM + 1, size):
        peer.write(_block(payload, qos, 0 if qos == 0 else first, size))
        await peer.flushed()
        await asyncio.sleep(0)  # what fits in TCP's buffers is written without a wait, and others have a turn


@functools.lru_cache(maxsize=64)
def _block(payload: bytes, qos: int, first: int, size: int) -> bytes:
    """PUBLISH packets with ids from `first` on: the same for all connections, for 200 at once would take long."""
    ids = range(first, min(first + size, RECEIVE_MAXIMUM + 1))
    return b"".join(_DIALECT.publish("topic", payload, qos=qos, packet_id=packet_id) for packet_id in ids)


def alone(payload: int) -> int:
    """What a mapping holds at least (bytes): one message, its record, and what a connection and a producer take."""
    return 2 * payload + _CONNECTIONS_BYTES


async def memory_run(folder: Path, *, payload: int, qos: int, mappings: int, seconds: float) -> Peak:
    """Run a service with so many mappings, stop its Kafka, and let publishers go on for so long.

    The mappings' budgets together are at most MKF_MEMORY_BUDGET, but each may hold one message.
    """
    names = [f"m{n}" for n in range(mappings)]
    share = max(min(BUFFER, MEMORY_BUDGET // mappings), alone(payload))
    begin, most, loop = asyncio.Event(), 0, asyncio.get_running_loop()
    with MockKafka() as kafka:
        await kafka.create_topic("k", partitions=3)
        async with endless_broker(bytes(payload), qos, begin) as broker:
            service = Service(
                folder,
                mqtt_broker=broker,
                kafka_broker=kafka,
                forwarding=[
                    {"name": name, "mqtt": {"topic": "#", "qos": qos}, "kafka": {"topic": "k"}} for name in names
                ],
                mqtt={"protocol": "5"},
                env={"MKF_MEMORY_BUDGET": str(MEMORY_BUDGET), **UNMEASURED},
            )
            async with service:
                await service.wait_ready(_START_SECONDS)
                for name in names:
                    await service.wait_state(name)
                await asyncio.to_thread(kafka.stop)
                begin.set()
                end = loop.time() + seconds
                for name in itertools.cycle(names):
                    most = max(most, service.private_memory())
                    check_books(await service.wait_status(name, lambda _: True, "an answer"))
                    if loop.time() > end:
                        break
                    await asyncio.sleep(_LOOK_SECONDS)
                statuses = [await service.wait_state(name, "retrying") for name in names]
                most = max(most, service.private_memory())
                service.kill9()  # a drain without Kafka would take its time, and proves nothing here
    received = sum(status["counters"]["received"] for status in statuses)
    return Peak(most, share * mappings + BESIDE_BUDGETS, received)


PAYLOADS, QOS, MAPPINGS = [0, 200, 1_000, 1_000_000], [0, 1], [1, 200]
COMBINATIONS = list(itertools.product(PAYLOADS, QOS, MAPPINGS))
DOCS = Path("docs/faults/memory.md")


def _measured(payload: int, qos: int, mappings: int, seconds: float) -> Peak:
    with tempfile.TemporaryDirectory(prefix="memory-") as folder:
        return asyncio.run(memory_run(Path(folder), payload=payload, qos=qos, mappings=mappings, seconds=seconds))


def main(
    *,
    jobs: Annotated[int, typer.Option(min=1, help="combinations at once")] = 4,
    seconds: Annotated[float, typer.Option(help="how long each combination is run")] = 600.0,
    report: Annotated[bool, typer.Option(help=f"write the table to {DOCS}")] = False,
) -> None:
    """Run every combination of payload, QoS and number of mappings; exit code 1 if one took more than it may."""
    lines = [
        "| payload, bytes | QoS | mappings | private memory at most, MB | may be, MB | messages held |",
        "|---|---|---|---|---|---|",
    ]
    within = True
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        runs = [pool.submit(_measured, *combination, seconds) for combination in COMBINATIONS]
        for combination, run in zip(COMBINATIONS, runs, strict=True):
            peak = run.result()
            within &= peak.private <= peak.allowed
            figures = (*combination, peak.private // MEGABYTE, peak.allowed // MEGABYTE, peak.received)
            lines.append("| " + " | ".join(f"{figure:,}" for figure in figures) + " |")
            typer.echo(lines[-1])
    if report:
        date = datetime.now(UTC).date().isoformat()
        command = f"python -m tests.faults.memory --seconds {seconds:g}"
        DOCS.write_text(f"# Memory without Kafka\n\n{date}, `{command}`\n\n" + "\n".join(lines) + "\n")
    raise typer.Exit(0 if within else 1)


if __name__ == "__main__":
    typer.run(main)
