"""Measure how a forwarder drains a persistent session; it is only ever talked to by MQTT, Kafka and signals.

Its session is established by starting it once, until a message goes through, and stopping it. Then the session is
filled. For the measurement the forwarder starts while the broker is frozen, so that it has loaded everything and waits
for the first byte when the broker goes on, which starts the clock: neither its start nor what it buffers meanwhile is
part of the figures. The topic has LogAppendTime: Kafka's own clock says when each batch was written, the same way for
every forwarder.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
from aiokafka import AIOKafkaConsumer, TopicPartition

from loadtest.figures import Drain, MeasurementError, check_complete, seconds_until_last
from loadtest.forwarders import Command, Task
from tests.brokers.process import Child
from tests.devices import connected, publish

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from tests.brokers import Kafka, Mosquitto

PARTITIONS = 4
TOPICS = 100
MARKER = b"marker"
START_TIMEOUT = 60.0
EXIT_TIMEOUT = 30.0
# A forwarder that waits for CONNACK gives up after a while, commonly 10 s.
SETTLE_TIMEOUT = 9.0
SILENCE_TIMEOUT = 30.0
_QUIET_SECONDS = 0.4
_QUIET_CPU_SECONDS = 0.02
_POLL_SECONDS = 0.05


@dataclass(frozen=True, slots=True)
class Load:
    """How many messages, and how large (bytes)."""

    messages: int
    size: int

    def __iter__(self) -> Iterator[bytes]:
        """The payloads: each begins with its number."""
        padding = b"." * self.size
        return ((b"%d " % number + padding)[: self.size] for number in range(self.messages))


@dataclass(frozen=True, slots=True)
class Place:
    """The brokers, and a folder for files."""

    mosquitto: Mosquitto
    kafka: Kafka
    folder: Path


@dataclass(frozen=True, slots=True)
class _Run:
    started_at: float
    cpu_seconds: float
    peak_bytes: int


async def drain(forwarder: Callable[[Task], Command], place: Place, load: Load) -> Drain:
    """Let one forwarder drain a session of its own.

    Raises:
        MeasurementError: messages are missing or out of order, or the forwarder did not do it in time.
    """
    mosquitto, kafka = place.mosquitto, place.kafka
    name = f"bench-{uuid.uuid4().hex[:12]}"
    folder = place.folder / name
    folder.mkdir(parents=True)
    await kafka.create_topic(name, PARTITIONS, {"message.timestamp.type": "LogAppendTime"})
    task = Task(
        mqtt=(mosquitto.host, mosquitto.port),
        kafka=(kafka.host, kafka.port),
        topic_filter=f"{name}/#",
        topic=name,
        folder=folder,
        name=name,
    )
    command = forwarder(task)
    child = Child(command.client_id, folder / "forwarder.log")
    try:
        async with _watched(kafka, name) as watched:
            await _establish(child, command, task, watched)
            topics = [f"{name}/{number}" for number in range(TOPICS)]
            messages = ((topics[number % TOPICS], payload) for number, payload in enumerate(load))
            await publish(*task.mqtt, messages, timeout=600)
            run = await _measured(child, command, mosquitto, watched, load.messages)
        left = await _unacknowledged(task, command.client_id)
        records = [record for record in await kafka.read_all(name, timeout=600) if record.value != MARKER]
    finally:
        if child.running:
            child.kill()
        await kafka.delete_topic(name)
    numbered = ((record.key, int((record.value or b"").split(b" ")[0])) for record in records)
    repeats = check_complete(numbered, load.messages)
    return Drain(
        messages=load.messages,
        seconds=seconds_until_last([record.timestamp for record in records], run.started_at),
        cpu_seconds=run.cpu_seconds,
        peak_bytes=run.peak_bytes,
        repeats=repeats,
        unacknowledged=left,
    )


class _Topic:
    """A Kafka topic, watched."""

    def __init__(self, consumer: AIOKafkaConsumer, topic: str) -> None:
        self._consumer = consumer
        self._partitions = [TopicPartition(topic, number) for number in range(PARTITIONS)]

    async def records(self) -> int:
        """How many records it holds."""
        return sum((await self._consumer.end_offsets(self._partitions)).values())


@asynccontextmanager
async def _watched(kafka: Kafka, topic: str) -> AsyncIterator[_Topic]:
    # Asking for offsets is all it does: it is assigned nothing, so it fetches nothing.
    consumer = AIOKafkaConsumer(topic, bootstrap_servers=kafka.bootstrap, group_id=None, enable_auto_commit=False)
    consumer.unsubscribe()
    await consumer.start()
    try:
        yield _Topic(consumer, topic)
    finally:
        await consumer.stop()


async def _establish(child: Child, command: Command, task: Task, topic: _Topic) -> None:
    """Start the forwarder until a message goes through, and stop it; its session stays."""
    child.spawn(command.arguments, env=command.env)
    deadline = time.monotonic() + START_TIMEOUT
    while not await topic.records():
        if not child.running or time.monotonic() > deadline:
            raise MeasurementError(str(child.error("forwards nothing")))
        await publish(*task.mqtt, [(f"{task.name}/0", MARKER)])
        await asyncio.sleep(0.2)
    await asyncio.to_thread(child.terminate, EXIT_TIMEOUT)


async def _measured(child: Child, command: Command, mosquitto: Mosquitto, topic: _Topic, messages: int) -> _Run:
    """Let it drain the session."""
    already = await topic.records()
    mosquitto.pause()
    try:
        child.spawn(command.arguments, env=command.env)
        await _settled(child, mosquitto.port)
        cpu, started_at = _cpu_seconds(child), time.time()
    finally:
        mosquitto.resume()
    held, changed = already, time.monotonic()
    while held < already + messages:
        await asyncio.sleep(_POLL_SECONDS)
        before, held = held, await topic.records()
        if held > before:
            changed = time.monotonic()
        elif not child.running or time.monotonic() - changed > SILENCE_TIMEOUT:
            raise MeasurementError(str(child.error(f"stopped after {held - already} of {messages} messages")))
    await _settled(child, mosquitto.port)
    run = _Run(started_at, _cpu_seconds(child) - cpu, peak_bytes(child.pid))
    await asyncio.to_thread(child.terminate, EXIT_TIMEOUT)
    return run


async def _settled(child: Child, mqtt_port: int) -> None:
    """Wait until it is connected to the MQTT broker, and idle."""
    process = psutil.Process(child.pid)
    deadline = time.monotonic() + SETTLE_TIMEOUT
    used, quiet_since = _cpu_seconds(child), time.monotonic()
    while time.monotonic() - quiet_since < _QUIET_SECONDS:
        await asyncio.sleep(_POLL_SECONDS)
        if not child.running or time.monotonic() > deadline:
            raise MeasurementError(str(child.error("is not connected, or does not become idle")))
        now = _cpu_seconds(child)
        connected_to = {peer.raddr.port for peer in process.net_connections("tcp") if peer.raddr}
        if now - used > _QUIET_CPU_SECONDS or mqtt_port not in connected_to:
            used, quiet_since = now, time.monotonic()


async def _unacknowledged(task: Task, client_id: str) -> int:
    """How many messages the session still holds; ends it."""
    host, port = task.mqtt
    async with connected(
        host, port, client_id, auto_ack=False, clean_start=False, session_expiry_interval=0
    ) as connection:
        await publish(*task.mqtt, [(f"{task.name}/0", MARKER)])
        async with asyncio.timeout(SILENCE_TIMEOUT):
            while not any(message.payload == MARKER for message in connection.messages):
                await connection.changed()
        return sum(message.payload != MARKER for message in connection.messages)


def _cpu_seconds(child: Child) -> float:
    times = psutil.Process(child.pid).cpu_times()
    return times.user + times.system


def peak_bytes(pid: int) -> int:
    """The most memory the process ever had resident."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise MeasurementError(f"/proc/{pid}/status has no VmHWM")
