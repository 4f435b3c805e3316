"""What each step of the service's fast path costs alone: `python -m loadtest.steps`.

The service's own code for MQTT 5 and Kafka, with nobody at either end. The least of many turns, so other load on the
machine hardly matters; what a step does to the caches of the next is left out, as are the kernel, Kafka's answers and
the garbage collector. For the whole there is `python -m loadtest drain`.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import mqtt5
import typer

from server.core.acks import Arrival
from server.core.connections import MqttConnection
from server.core.mapping import Mapping
from server.kafka.batch import RecordBatch
from server.kafka.lanes import build
from server.kafka.outbox import Outbox
from server.kafka.partitioners import partitioner
from server.kafka.sink import DEFAULT_RECORD_LIMIT
from server.mqtt.connection import SLICE_PACKETS
from server.mqtt.port import Granted, SessionRequest
from server.mqtt.readbuffer import SharedBuffer
from server.mqtt.v5 import Connection, decode
from server.ticks import Ticks

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from server.kafka.lanes import Flight
    from server.mqtt.port import Connection as AnyConnection
    from server.mqtt.port import Message

_Made = TypeVar("_Made")

TOPICS = 100
PARTITIONS = 4
_BATCH_BYTES = 1_000_000


def _read(size: int) -> memoryview:
    """Packets as a broker sends them, with payloads of so many bytes."""
    at_least_once = mqtt5.QoS.AT_LEAST_ONCE
    packets = [
        mqtt5.PublishPacket(f"devices/{n % TOPICS}/temperature", bytes(size), qos=at_least_once, packet_id=1_000 + n)
        for n in range(SLICE_PACKETS)
    ]
    return memoryview(b"".join(packet.write() for packet in packets))


class _Nowhere(asyncio.Transport):
    """Takes what is written."""

    def write(self, data: object) -> None:
        """Drop it."""


class _Nobody:
    """Takes what a connection reads."""

    def connected(self, connection: AnyConnection) -> None:
        """Nothing to do."""

    def received(self, messages: Sequence[Message], size: int) -> None:
        """Nothing to do."""

    def all_received(self) -> None:
        """Nothing to do."""

    def discarded(self, messages: Sequence[Message]) -> None:
        """Nothing to do."""

    def receiving(self, size: int) -> None:
        """Nothing to do."""


def _connected() -> Connection:
    broker = MqttConnection(host="nowhere")
    request = SessionRequest(broker, "steps", clean_start=True, session_expiry=0, receive_maximum=65_535)
    connection = Connection(request, _Nobody(), SharedBuffer(), Ticks())
    connection.connection_made(_Nowhere())
    connection.accept(
        Granted("5", session_present=False, client_id="", session_expiry=0, subscription_identifiers=True)
    )
    return connection


def _outbox() -> Outbox:
    mapping = Mapping.model_validate({"name": "steps", "mqtt": {"topic": "#"}, "kafka": {"topic": "steps"}})
    outbox = Outbox(mapping, partitioner("murmur2"))
    outbox.follow(lambda _: PARTITIONS)
    return outbox


def _built(outbox: Outbox) -> list[Flight]:
    flights = []
    for lane in outbox.ready:
        flight, _ = build(lane, RecordBatch(_BATCH_BYTES, 0), limit=DEFAULT_RECORD_LIMIT, now=0.0)
        if flight is None:
            raise RuntimeError(f"nothing fits in a batch of {_BATCH_BYTES} bytes")
        flights.append(flight)
    outbox.ready.clear()
    return flights


def _finish(flights: list[Flight]) -> None:
    for flight in flights:
        flight.batch._build()  # noqa: SLF001 - as aiokafka does when it sends it


async def steps(turns: int, size: int) -> dict[str, float]:
    """The least each step took in so many turns, in ns a message, for payloads of `size` bytes."""
    data, connection, outbox = _read(size), _connected(), _outbox()
    least: dict[str, float] = {}
    count = SLICE_PACKETS

    def timed(step: str, do: Callable[..., _Made], *given: Any) -> _Made:
        begin = time.perf_counter()
        made = do(*given)
        took = (time.perf_counter() - begin) / count * 1e9
        least[step] = min(took, least.get(step, took))
        return made

    for _ in range(turns):
        packets, used, _ = timed("decode packets (mqtt5, Rust)", decode, data, 0)
        count = len(packets)  # fewer, if they are large
        arrival = Arrival(packets, used, 0.0)
        timed("see whether they may be taken", connection._dispatch, packets, used)  # noqa: SLF001 - a step inside
        timed("place them in lanes", outbox.add, arrival, packets)
        flights = timed("build batches (encoding by aiokafka, C)", _built, outbox)
        timed("CRC-32C and header of batches (aiokafka, C)", _finish, flights)
        timed("acknowledge", connection.acknowledge, packets)
        held = [packets, flights, arrival]
        del packets, flights, arrival
        timed("free them", held.clear)
    connection.connection_lost(None)
    return least


def main(
    *,
    turns: Annotated[int, typer.Option(min=1)] = 400,
    size: Annotated[int, typer.Option(min=0, help="bytes of a payload")] = 200,
) -> None:
    """Print what each step costs, in ns a message."""
    for step, nanoseconds in sorted(asyncio.run(steps(turns, size)).items(), key=lambda item: -item[1]):
        typer.echo(f"{nanoseconds:6.0f}  {step}")


if __name__ == "__main__":
    typer.run(main)
