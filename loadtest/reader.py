"""The reader: a process of its own that reads a Kafka topic and judges what is in it.

It reads while the messages flow, with librdkafka fetching in threads of C, or afterwards, when reading would take from
the forwarder the CPU that is to be measured. Latency is then until Kafka appended the batch, by the record's timestamp
(the tool's topics have LogAppendTime), which is in milliseconds; otherwise until this consumer had the message.
"""

from __future__ import annotations

import time
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from confluent_kafka import Consumer, KafkaException, TopicPartition

from loadtest.latency import Latencies
from loadtest.payload import headers
from loadtest.verdict import Judge, Verdict

if TYPE_CHECKING:
    from collections.abc import Sequence
    from multiprocessing.connection import Connection as Pipe

    from numpy.typing import NDArray

    from loadtest.endpoints import KafkaEndpoint

BATCH = 20_000
POLL_SECONDS = 0.05
FETCH_MILLIS = 50
OFFSETS_TIMEOUT = 20.0
# What arrives in the same half second is one point of a plot.
BIN_NS = 500_000_000
_NANOS_PER_MILLI = 1_000_000


@dataclass(frozen=True, slots=True)
class Task:
    """What to read: a topic with so many partitions, holding messages of so many MQTT topics.

    A message can't be late before `since_ns`, however early it was sent: when the broker could send it on.
    """

    kafka: KafkaEndpoint
    topic: str
    partitions: int
    mqtt_topics: int
    live: bool
    since_ns: int = 0


@dataclass(frozen=True, slots=True)
class Stop:
    """Tells the reader to read to the end as it is then, and to judge by how many messages each publisher has sent."""

    published: Sequence[int]


@dataclass(slots=True)
class Interval:
    """What arrived in half a second."""

    messages: int = 0
    latencies: Latencies = field(default_factory=Latencies)


@dataclass(frozen=True, slots=True)
class Reading:
    """What the reader found. Times are nanoseconds since 1970.

    `last_append_ns` is 0 if there was no message at all. `intervals` are by the half second they began in.
    """

    verdict: Verdict
    latencies: Latencies
    first_append_ns: int
    last_append_ns: int
    intervals: dict[int, Interval]


class Reader:
    """Reads and judges. `arrived` counts different messages so far."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._judge = Judge(task.mqtt_topics)
        self._latencies = Latencies()
        self._intervals: dict[int, Interval] = defaultdict(Interval)
        self._first, self._last = 0, 0
        self._positions = dict.fromkeys(range(task.partitions), 0)
        self.arrived = 0
        self._consumer = Consumer(
            {
                **task.kafka.client,
                "group.id": "loadtest",
                "enable.auto.commit": False,
                "enable.partition.eof": False,
                "fetch.min.bytes": 1,
                # A node answers in order: what is asked behind a fetch that finds nothing waits as long as it does.
                "fetch.wait.max.ms": FETCH_MILLIS,
                "fetch.message.max.bytes": 8 << 20,
                "queued.max.messages.kbytes": 256 << 10,
                "check.crcs": False,
            }
        )
        self._consumer.assign([TopicPartition(task.topic, number, 0) for number in range(task.partitions)])

    def read(self, timeout: float) -> None:
        """Wait so many seconds for a message, and take all that are there with it."""
        # consume(n, timeout) would wait for n messages and so add to the latency of the first.
        first = self._consumer.poll(timeout)
        if first is None:
            return
        found: list[Any] = [first, *self._consumer.consume(BATCH, 0)]
        now = time.time_ns()
        for message in found:
            if message.error():
                raise KafkaException(message.error())
            self._positions[message.partition()] = message.offset() + 1
        numbers, sent = headers([message.value() for message in found])
        appended = np.array([message.timestamp()[1] for message in found], dtype=np.int64) * _NANOS_PER_MILLI
        ours = numbers >= 0
        self._take(numbers[ours], sent[ours], appended[ours], now)

    def ends(self) -> dict[int, int]:
        """The offset after the last record of every partition, as it is now."""
        return {number: self._end(number) for number in range(self._task.partitions)}

    def finished(self, ends: dict[int, int]) -> bool:
        """Whether everything before these offsets was read."""
        return all(self._positions[number] >= end for number, end in ends.items())

    def reading(self, published: Sequence[int]) -> Reading:
        """What was found, all in all."""
        return Reading(self._judge.verdict(published), self._latencies, self._first, self._last, dict(self._intervals))

    def close(self) -> None:
        """Leave Kafka."""
        self._consumer.close()

    def _end(self, partition: int) -> int:
        at = TopicPartition(self._task.topic, partition)
        end: int = self._consumer.get_watermark_offsets(at, timeout=OFFSETS_TIMEOUT)[1]
        return end

    def _take(self, numbers: NDArray[np.int64], sent: NDArray[np.int64], appended: NDArray[np.int64], now: int) -> None:
        if not len(numbers):
            return
        self.arrived += self._judge.take(numbers)
        self._first = min(self._first or int(appended.min()), int(appended.min()))
        self._last = max(self._last, int(appended.max()))
        arrival = np.full_like(sent, now) if self._task.live else appended
        latencies = arrival - np.maximum(sent, self._task.since_ns)
        self._latencies.record(latencies)
        bins = arrival // BIN_NS
        for each in np.unique(bins):
            inside = bins == each
            interval = self._intervals[int(each)]
            interval.messages += int(np.count_nonzero(inside))
            interval.latencies.record(latencies[inside])


def read(task: Task, pipe: Pipe, arrived: Any) -> None:
    """Read until told to stop, and tell what was found: the body of the process. `arrived` is a shared counter."""
    reader = Reader(task)
    try:
        reader.read(0)
        pipe.send(None)
        while not pipe.poll():
            reader.read(POLL_SECONDS)
            arrived.value = reader.arrived
        stop: Stop = pipe.recv()
        ends = reader.ends()
        while not reader.finished(ends):
            reader.read(POLL_SECONDS)
        pipe.send(reader.reading(stop.published))
    finally:
        reader.close()
