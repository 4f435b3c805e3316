"""Payloads of every size MQTT has, 0 B to 256 MB, and of content that may be taken for something else."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
from base64 import b64encode
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import mqtt5
import pytest

from tests.forwarding import Stage, quiet
from tests.security.extent import EXTENT

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from tests.devices import Message
    from tests.service import Service

# A PUBLISH has at most 268,435,455 bytes after its fixed header (MQTT 5.0, 1.5.5), of which topic, packet id and
# properties are no payload.
LARGEST = 268_435_455
_PUBLISH_HEADER = 2 + 2 + 1  # the topic's length, the packet id, and no properties
# max.message.bytes, as Kafka has it by default, is 1,048,588 with the record's own bytes.
KAFKA_LIMIT = 1_048_588
FITS = 1_048_000
# Where something changes: the length's varint, the read buffers of the socket, Kafka's limit and its varints.
_EDGES = (0, 1, 64, 127, 128, 8_192, 16_383, 16_384, 65_535, 65_536, 131_072, 262_144, 524_288)
# A message as it was read, and once more while it is decoded; docs/faults/memory.md has the same allowance.
_COPIES = 2
_BESIDE = 32_000_000
TOO_LARGE = (1_100_000, 2_097_151, 2_097_152, 8_000_000, 16_777_216, 50_000_000, 99_000_000, 110_000_000, LARGEST)


@dataclass
class Highest:
    """The most private memory that was seen (bytes)."""

    bytes: int = 0


@asynccontextmanager
async def _highest(service: Service) -> AsyncIterator[Highest]:
    """Look at the memory of the service all the time."""
    highest = Highest()

    async def look() -> None:
        while True:
            highest.bytes = max(highest.bytes, await asyncio.to_thread(service.private_memory))
            await asyncio.sleep(0.01)

    looking = asyncio.create_task(look())
    try:
        yield highest
    finally:
        looking.cancel()
        await asyncio.wait([looking])


def _contents(size: int) -> Iterator[bytes]:
    """Payloads of this size that a parser could take for something else."""
    packet = mqtt5.PublishPacket("a/b", b"x" * 20, qos=mqtt5.QoS.AT_LEAST_ONCE, packet_id=1).write()
    for pattern in (
        b"\x00",
        b"\xff",  # a varint that never ends
        b"\xc3\x28",  # no UTF-8
        packet,
        b'{"topic":"a","payload":"',
        b"\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x31\x00\x00\x00\x00\x02",  # how a record batch begins
        hashlib.shake_128(b"%d" % size).digest(4_096),
    ):
        yield (pattern * (size // len(pattern) + 1))[:size]


def _corpus(prefix: str) -> list[Message]:
    sizes = sorted({max(0, edge + off) for edge in _EDGES for off in (-1, 0, 1)} | {FITS})
    contents = itertools.chain.from_iterable(_contents(size) for size in sizes)
    return [(f"{prefix}/{n % 10}", content) for n, content in enumerate(contents)]


def _record(message: Message, wrap: bool) -> tuple[bytes, bytes]:
    name, payload = message
    value = b'{"topic":"%b","payload":"%b"}' % (name.encode(), b64encode(payload)) if wrap else payload
    return name.encode(), value


async def _all_received(service: Service, count: int) -> dict[str, Any]:
    def done(status: dict[str, Any]) -> bool:
        return bool(status["counters"]["received"] == count and status["in_flight"]["messages"] == 0)

    return await service.wait_status("m", done, f"{count} received and none in flight", timeout=120)


@pytest.mark.parametrize("wrap", [False, True], ids=["bare", "wrapped"])
async def test_payloads_of_every_size_and_content_arrive_as_they_are(stage: Stage, wrap: bool) -> None:
    topic = await stage.kafka_topic(config={"max.message.bytes": str(2 * KAFKA_LIMIT)})
    messages = _corpus(stage.unique)
    async with stage.running(stage.mapping(topic, wrap_as_json=wrap)) as service:
        await stage.publish(messages, window=20)
        records = await stage.kafka.wait_for_records(topic, len(messages))
        status = await quiet(service)
    assert [(r.key, r.value) for r in records] == [_record(message, wrap) for message in messages]
    assert status["counters"]["reconnects"] == 0


@pytest.mark.parametrize("wrap", [False, True], ids=["bare", "wrapped"])
async def test_payloads_that_no_kafka_takes_are_dropped_in_bounded_memory(stage: Stage, wrap: bool) -> None:
    topic = await stage.kafka_topic()
    sizes = [size for size in TOO_LARGE if size <= EXTENT.largest_payload]
    async with stage.running(stage.mapping(topic, wrap_as_json=wrap, on_poison="drop")) as service:
        before = service.private_memory()
        for done, size in enumerate(sizes):
            name = f"{stage.unique}/{size}"
            large = bytes(min(size, LARGEST - len(name) - _PUBLISH_HEADER))
            async with _highest(service) as highest:
                await stage.publish([(name, b"before"), (name, large), (name, b"after")], window=1, timeout=300)
                status = await _all_received(service, 3 * (done + 1))
            assert highest.bytes - before < _COPIES * size + _BESIDE, size
            assert status["counters"]["dropped"] == {"message_too_large": done + 1}
            assert status["state"] == "running"
        records = await stage.kafka.wait_for_records(topic, 2 * len(sizes))
    small = [(f"{stage.unique}/{size}", payload) for size in sizes for payload in (b"before", b"after")]
    assert [(r.key, r.value) for r in records] == [_record(message, wrap) for message in small]
    assert status["counters"]["reconnects"] == 0
