"""One aiokafka producer's life: start within a limit, and an end after which nothing more is written.

A producer is used until its first failed batch and then abandoned: a failed batch has used up its sequence numbers
(shared facts on Kafka: every later batch of that partition gets OutOfOrderSequenceNumber).
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import aiokafka.errors
from aiokafka.errors import BrokerResponseError, KafkaError
from aiokafka.producer.transaction_manager import TransactionManager

from server.core.failures import Failure, Kind, kafka_failure
from server.core.lifecycle import Reason
from server.core.rests import Rests
from server.kafka.connecting import notice_refused_tokens
from server.kafka.connection import use as use_connection
from server.kafka.oauth import Tokens
from server.kafka.questions import Questions
from server.kafka.sender import LeanProducer
from server.kafka.tls import ConfigurationError, ReloadedContext
from server.ticks import Ticks

if TYPE_CHECKING:
    from collections.abc import Iterable

    from aiokafka.structs import TopicPartition

    from server.core.kafka_options import KafkaOptions

DEFAULT_REST_SECONDS = 0.006
START_TIMEOUT_SECONDS = 10.0
_ABANDON_TIMEOUT_SECONDS = 2.0
# A producer without Kafka connects twice in each of these times. What is right for one is too often for hundreds: at
# 100 ms each, 200 mappings took 37 % of a core, 0.2 ms a time. With this much more for each there are 100 times a
# second for all together, until there are 200.
_RETRY_BACKOFF_MS = 100
_RETRY_BACKOFF_MS_PER_SINK = 10
_MOST_RETRY_BACKOFF_MS = 2_000


def _register_unnamed_errors() -> None:
    """Give the codes aiokafka does not know a class each; otherwise they all arrive as UnknownError (-1)."""
    names = {
        74: "FencedLeaderEpoch",
        75: "UnknownLeaderEpoch",
        76: "UnsupportedCompressionType",
        77: "StaleBrokerEpoch",
        78: "OffsetNotAvailable",
        80: "PreferredLeaderNotAvailable",
        81: "GroupMaxSizeReached",
        87: "InvalidRecord",
        89: "ThrottlingQuotaExceeded",
        90: "ProducerFenced",
        100: "UnknownTopicId",
        103: "InconsistentTopicId",
    }
    retriable = {74, 75, 77, 78, 80, 89}
    for code, name in names.items():
        if code not in aiokafka.errors.kafka_errors:
            members = {"errno": code, "message": name, "retriable": code in retriable}
            aiokafka.errors.kafka_errors[code] = type(name, (aiokafka.errors.BrokerResponseError,), members)


_register_unnamed_errors()

# What aiokafka makes an error of its own of. It speaks of transactions there, which we have none of.
_CLIENTS_OWN = {aiokafka.errors.ProducerFenced: aiokafka.errors.InvalidProducerEpoch.errno}


def _number_records_as_kafka_does() -> None:
    """Let a partition's sequence numbers begin with 0 again after 2^31 - 1.

    aiokafka goes on with negative ones, which Kafka answers with INVALID_RECORD: a good record would pass for poison.
    Kafka's own client does the same as this (DefaultRecordBatch.incrementSequence).
    """

    def increment(transactions: TransactionManager, at: TopicPartition, records: int) -> None:
        numbers = transactions._sequence_numbers  # noqa: SLF001
        numbers[at] = (numbers[at] + records) % 2**31

    TransactionManager.increment_sequence_number = increment


use_connection()
_number_records_as_kafka_does()
notice_refused_tokens()


def classify(error: BaseException, *, topic: str, servers: str = "") -> Failure:
    """What a failed batch or a failed start means."""
    if isinstance(error, ConfigurationError):
        return Failure(Kind.RETRY, Reason("kafka_configuration", str(error)))
    code = error.errno if isinstance(error, BrokerResponseError) else _CLIENTS_OWN.get(type(error))
    return kafka_failure(code, type(error).__name__, str(error), topic=topic, servers=servers)


@dataclass(slots=True)
class Cluster:
    """A Kafka cluster and how to write to it; `sinks` is how many do, and `rests` are those of their readers."""

    address: str
    options: KafkaOptions
    sinks: int = 0
    questions: Questions = field(default_factory=Questions, init=False, repr=False)
    ticks: Ticks = field(default_factory=Ticks, init=False, repr=False)
    rests: Rests = field(init=False, repr=False)
    _context: ReloadedContext | None = field(init=False, repr=False)
    _tokens: Tokens | None = field(init=False, repr=False)

    def __post_init__(self) -> None:
        linger_ms = self.options.linger_ms
        self.rests = Rests(DEFAULT_REST_SECONDS) if linger_ms is None else Rests(linger_ms / 1000, fixed=True)
        self._context = ReloadedContext(self.options.ssl) if self.options.ssl else None
        self._tokens = Tokens(self.options.oauth) if self.options.oauth else None

    @property
    def bootstrap_servers(self) -> str:
        """`host:port`, comma separated."""
        return self.options.bootstrap_servers or self.address

    @property
    def retry_backoff_ms(self) -> int:
        """How long a producer waits before it tries again, unless the configuration says; longer if there are many."""
        return min(max(_RETRY_BACKOFF_MS, self.sinks * _RETRY_BACKOFF_MS_PER_SINK), _MOST_RETRY_BACKOFF_MS)

    def arguments(self, *, max_batch_size: int) -> dict[str, Any]:
        """What to construct an AIOKafkaProducer with.

        Raises:
            ConfigurationError: the PEM files can't be used.
        """
        if self._context is not None:
            self._context.current()
        return {
            "bootstrap_servers": self.bootstrap_servers,
            "ssl_context": self._context,
            "sasl_oauth_token_provider": self._tokens,
            "retry_backoff_ms": self.retry_backoff_ms,
            **self.options.producer,
            "max_batch_size": max_batch_size,
        }


class Producer:
    """A started producer."""

    def __init__(self, aiokafka_producer: LeanProducer) -> None:
        self._producer = aiokafka_producer
        self.create_batch = aiokafka_producer.create_batch
        self.hand_over = aiokafka_producer.hand_over
        self.flush = aiokafka_producer.flush

    @classmethod
    async def start(cls, cluster: Cluster, *, max_batch_size: int) -> Producer:
        """Start a producer; idempotence has its producer id when this returns.

        Raises:
            ConfigurationError: no producer can be made of what the configuration says.
            KafkaError: Kafka can't be reached, or refuses us.
            TimeoutError: no answer within START_TIMEOUT_SECONDS.
        """
        arguments = cluster.arguments(max_batch_size=max_batch_size)
        producer: Producer | None = None
        try:
            producer = cls(LeanProducer(**arguments))
            async with asyncio.timeout(START_TIMEOUT_SECONDS):
                await producer._producer.start()
        except BaseException as error:
            if producer is not None:
                await producer.abandon()
            if isinstance(error, AssertionError | TypeError | ValueError):
                raise ConfigurationError(f"aiokafka refuses kafka.config: {error}") from error
            raise
        return producer

    def watch(self, topic: str) -> None:
        """Keep the metadata of this topic."""
        self._producer.client.add_topic(topic)

    def ask_for_metadata(self) -> asyncio.Future[bool]:
        """Ask for new metadata soon; the future says whether a broker gave it."""
        asked: asyncio.Future[bool] = self._producer.client.force_metadata_update()
        return asked

    async def fetch_metadata(self, topics: Iterable[str]) -> None:
        """Learn these topics' partitions, and keep following them.

        Raises:
            TimeoutError: Kafka did not answer within START_TIMEOUT_SECONDS.
        """
        for topic in topics:
            self.watch(topic)
        async with asyncio.timeout(START_TIMEOUT_SECONDS):
            await asyncio.shield(self._producer.client.force_metadata_update())

    def check(self) -> None:
        """See that the task which keeps metadata is alive; without it nothing that moved would be found again.

        Raises:
            KafkaError: it has crashed.
        """
        synchronizer = self._producer.client._sync_task  # noqa: SLF001 - aiokafka watches its sender only
        if synchronizer is not None and synchronizer.done() and not synchronizer.cancelled():
            raise KafkaError(f"aiokafka's metadata task crashed: {synchronizer.exception()!r}")

    def partitions(self, topic: str) -> int:
        """How many partitions the topic has; 0 while that is not known."""
        return len(self._producer.client.cluster._partitions.get(topic, ()))  # noqa: SLF001 - asked in every round

    def may_not_see(self, topic: str) -> bool:
        """Whether Kafka hides the topic from us."""
        return topic in self._producer.client.cluster.unauthorized_topics

    def leaderless(self, topic: str) -> list[int]:
        """The topic's partitions without a leader."""
        cluster = self._producer.client.cluster
        known = cluster.partitions_for_topic(topic) or set()
        return sorted(known - (cluster.available_partitions_for_topic(topic) or set()))

    async def abandon(self) -> None:
        """End the producer so that it writes nothing more, whatever Kafka does.

        `stop()` would wait for batches that Kafka does not take, and a sender left behind would deliver them later,
        next to our resends. So: no new connections, give up every request, also those that wait for a connection, then
        close the connections with what waits in them for room in a socket.
        """
        producer, client = self._producer, self._producer.client
        client._get_conn = _no_connection  # noqa: SLF001 - aiokafka has no public way to end without flushing
        producer._closed = True  # noqa: SLF001 - its finalizer would warn of a producer left open
        await producer.end(_ABANDON_TIMEOUT_SECONDS)
        if client._sync_task is not None and client._sync_task.done():  # noqa: SLF001
            client._sync_task = None  # noqa: SLF001 - if it crashed, `close` would raise that and close nothing
        for connection in client._conns.values():  # noqa: SLF001
            if connection._writer is not None:  # noqa: SLF001
                connection._writer.transport.abort()  # noqa: SLF001 - `close` would write what waits, however late
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_ABANDON_TIMEOUT_SECONDS):
                await client.close()
        producer.fail_all(KafkaError("the producer was abandoned"))


async def _no_connection(*_: Any, **__: Any) -> None:
    return None
