"""A Kafka that does only what a test tells it, behind the face of `server.kafka.producer.Producer`.

The batches are aiokafka's own, and are read back from their bytes. It insists on what the sink promises: one batch per
partition in flight, and nothing for a partition whose batch has failed, or after `abandon`.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from aiokafka.errors import KafkaError, for_code
from aiokafka.record.memory_records import MemoryRecords

from server.kafka import sink
from server.kafka.batch import RecordBatch
from server.kafka.producer import Producer as RealProducer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    import pytest

    from server.kafka.batch import Answered
    from server.kafka.producer import Cluster

CONFIRM = "confirm"
STALL = "stall"
LOSE_ANSWER = "lose answer"  # written, but the producer never hears of it


class Written(NamedTuple):
    """A record in a log."""

    key: bytes | None
    value: bytes
    headers: tuple[tuple[str, bytes], ...]


@dataclass(eq=False)
class Sent:
    """A batch handed over; `answer` it, unless the kafka's judge has."""

    producer: FakeProducer
    topic: str
    partition: int
    records: list[Written]
    size: int
    answered: Answered
    at: float
    done: bool = False

    @property
    def values(self) -> list[bytes]:
        return [record.value for record in self.records]

    def answer(self, verdict: object = CONFIRM) -> None:
        """Confirm, or fail with a Kafka error code or an exception, or lose the answer."""
        if self.done or self.producer.abandoned:
            return
        if verdict == STALL:
            return
        if verdict in {CONFIRM, LOSE_ANSWER}:
            self.producer.kafka.logs[self.topic, self.partition] += self.records
        if verdict == CONFIRM:
            self.tell(None)
        elif verdict != LOSE_ANSWER:
            self.producer.failed.add((self.topic, self.partition))
            error = for_code(verdict)() if isinstance(verdict, int) else verdict
            assert isinstance(error, BaseException)
            self.tell(error)

    def tell(self, error: BaseException | None) -> None:
        """Answer, once."""
        if not self.done:
            self.done = True
            self.answered(error)


@dataclass
class FakeKafka:
    """The cluster."""

    topics: dict[str, int] = field(default_factory=lambda: {"k": 1, "dead": 1})
    # What becomes of a batch; at once.
    judge: Callable[[Sent], object] = lambda _: CONFIRM
    start_error: BaseException | None = None
    start_hangs: bool = False
    # Of the client's own tasks; once.
    crash: KafkaError | None = None
    reachable: bool = True
    hidden: set[str] = field(default_factory=set)
    leaderless: dict[str, list[int]] = field(default_factory=dict)
    logs: dict[tuple[str, int], list[Written]] = field(default_factory=lambda: defaultdict(list))
    sent: list[Sent] = field(default_factory=list)
    producers: list[FakeProducer] = field(default_factory=list)
    starts: int = 0
    sinks: int = 1

    def install(self, monkeypatch: pytest.MonkeyPatch) -> FakeKafka:
        """Take the place of aiokafka in the sink; one at a time: of two, the last to end would leave a fake behind."""
        assert sink.__dict__["Producer"] is RealProducer, "another FakeKafka has this place"
        kafka = self

        class Producer(FakeProducer):
            @classmethod
            async def start(cls, cluster: Cluster, *, max_batch_size: int) -> FakeProducer:
                del cluster
                return await kafka.start(max_batch_size)

        monkeypatch.setattr("server.kafka.sink.Producer", Producer)
        return self

    async def start(self, max_batch_size: int) -> FakeProducer:
        self.starts += 1
        await asyncio.sleep(0)
        if self.start_hangs:
            await asyncio.sleep(10)
            raise TimeoutError
        if self.start_error is not None:
            raise self.start_error
        assert self.open_producers < self.sinks, "two producers of one sink"
        producer = FakeProducer(self, max_batch_size)
        self.producers.append(producer)
        return producer

    def values(self, topic: str = "k", partition: int = 0) -> list[bytes]:
        return [record.value for record in self.logs[topic, partition]]

    @property
    def open_producers(self) -> int:
        return sum(not producer.abandoned for producer in self.producers)


class FakeProducer:
    """One producer's life."""

    def __init__(self, kafka: FakeKafka, max_batch_size: int) -> None:
        self.kafka = kafka
        self.max_batch_size = max_batch_size
        self.abandoned = False
        self.failed: set[tuple[str, int]] = set()
        self.in_flight: dict[tuple[str, int], Sent] = {}
        self._handed_over: list[Sent] = []
        self.watched: set[str] = set()
        self.known: dict[str, int] = {}
        self._asked: list[asyncio.Future[bool]] = []

    def create_batch(self) -> RecordBatch:
        return RecordBatch(self.max_batch_size, 0)

    def watch(self, topic: str) -> None:
        self.watched.add(topic)

    def ask_for_metadata(self) -> asyncio.Future[bool]:
        asked: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        if self.kafka.reachable:
            self._learn()
            asked.set_result(True)
        else:
            self._asked.append(asked)
        return asked

    async def fetch_metadata(self, topics: Iterable[str]) -> None:
        await asyncio.sleep(0)
        self.watched.update(topics)
        self._learn()

    def _learn(self) -> None:
        self.known = {
            topic: self.kafka.topics[topic]
            for topic in self.watched
            if topic in self.kafka.topics and topic not in self.kafka.hidden
        }

    def check(self) -> None:
        if self.kafka.crash is not None:
            crash, self.kafka.crash = self.kafka.crash, None
            raise crash

    def partitions(self, topic: str) -> int:
        return self.known.get(topic, 0)

    def may_not_see(self, topic: str) -> bool:
        return topic in self.kafka.hidden

    def leaderless(self, topic: str) -> list[int]:
        return self.kafka.leaderless.get(topic, [])

    def hand_over(self, batch: RecordBatch, topic: str, partition: int, answered: Answered) -> None:
        assert not self.abandoned
        assert partition < self.known[topic]
        at = topic, partition
        assert at not in self.failed, "sent behind a failed batch of the same partition"
        before = self.in_flight.get(at)
        assert before is None or before.done, "two batches of one partition in flight"
        batch.close()
        now, size = asyncio.get_running_loop().time(), batch.size()
        sent = Sent(self, topic, partition, read(batch), size, answered, now)
        self.in_flight[at] = sent
        self._handed_over.append(sent)

    def flush(self) -> None:
        assert not self.abandoned
        handed_over, self._handed_over = self._handed_over, []
        for sent in handed_over:
            self.kafka.sent.append(sent)
            sent.answer(self.kafka.judge(sent))

    async def abandon(self) -> None:
        self.abandoned = True
        await asyncio.sleep(0)
        for sent in self.in_flight.values():
            sent.tell(KafkaError("abandoned"))
        for asked in self._asked:
            asked.cancel()


def read(batch: RecordBatch) -> list[Written]:
    """The records of a closed batch, from its bytes."""
    records = MemoryRecords(bytes(batch._build()))
    found = []
    while records.has_next():
        found += [Written(r.key, r.value, tuple(r.headers)) for r in records.next_batch()]
    return found
