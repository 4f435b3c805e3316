"""aiokafka's sender, which waits for less.

The original wakes a task for every batch, which waits for a set of futures twice a request: a fifth of what a small
request costs in CPU, and most of its turns of the event loop (docs/decisions/0018-sender.md). Here requests leave where
batches are handed over. What is tried again, with which sequence number, and how it fails is aiokafka's own.
"""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from typing import TYPE_CHECKING, Any

import structlog
from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError
from aiokafka.producer.sender import Sender, SendProduceReqHandler
from aiokafka.structs import TopicPartition

from server.kafka.batch import RecordBatch
from server.kafka.produce_request import Request

if TYPE_CHECKING:
    from collections.abc import Mapping

    from aiokafka.producer.message_accumulator import MessageAccumulator, MessageBatch

# From so many bytes on Kafka gets the next request before it has answered the last: one to work on, one to go on with.
LARGE_REQUEST_BYTES = 256 * 1024
_MOST_OWED = 2
_log = structlog.get_logger()


def fail_all(accumulator: MessageAccumulator, error: BaseException) -> None:
    """Fail every batch, those that wait for their next attempt included; from now on none is taken."""
    # Their callbacks look for them among the pending ones, and nobody asks whether they were drained.
    queued = [batch for queue in accumulator._batches.values() for batch in queue]  # noqa: SLF001
    accumulator._pending_batches.update(queued)  # noqa: SLF001
    accumulator.fail_all(error)
    for batch in queued:
        if not batch._drain_waiter.cancelled():  # noqa: SLF001
            batch._drain_waiter.exception()  # noqa: SLF001


class LeanSender(Sender):  # type: ignore[misc] # aiokafka has no types
    """Sends what the accumulator has for a node as soon as that node owes no answer, or only one to a large request.

    Kafka reads a connection's next request when it has answered the last. If that is on its way already, it takes it at
    once; otherwise it waits until we have acknowledged what it confirmed and built what comes next. Not more than two:
    each waits for the replicas on its own. Small batches wait, so that they gather.
    """

    def __init__(self, client: Any, **arguments: Any) -> None:
        super().__init__(client, **arguments)
        self._loop = asyncio.get_running_loop()  # to ask for it is a system call (getpid), 2 % of a small request
        self._requests: set[asyncio.Task[None]] = set()
        self._owed: Counter[int] = Counter()  # of each node; a small request counts as much as may be owed
        self._leaderless = asyncio.Event()
        self._ended = False

    def send_ready(self) -> None:
        """Send what waits for each node that may owe more than it does."""
        if self._ended:
            return
        nodes, leaderless = self._message_accumulator.drain_by_nodes(
            ignore_nodes={node for node, owed in self._owed.items() if owed >= _MOST_OWED},
            muted_partitions=self._muted_partitions,
        )
        for node, batches in nodes.items():
            self._muted_partitions.update(batches)
            size = sum(batch._builder.size() for batch in batches.values())  # noqa: SLF001
            if size < LARGE_REQUEST_BYTES:
                self._send(node, batches, weight=_MOST_OWED)
                continue
            # Of several the node gets one request now, and one to go on with.
            parts = 1 if self._owed[node] else min(_MOST_OWED, len(batches))
            for part in range(parts):
                self._send(node, dict(list(batches.items())[part::parts]), weight=1)
        if leaderless:
            self._leaderless.set()

    def _send(self, node: int, batches: Mapping[TopicPartition, MessageBatch], weight: int) -> None:
        self._owed[node] += weight
        request = self._loop.create_task(self._exchange(node, batches, weight))
        self._requests.add(request)
        request.add_done_callback(self._answered)

    async def end(self, within: float) -> None:
        """Send nothing more, and give up what is on its way or waits for a connection, within so many seconds."""
        self._ended = True
        left: set[asyncio.Future[Any]] = {*self._requests}
        if self._sender_task is not None:
            left.add(self._sender_task)
        for task in left:
            task.cancel()
        if left:
            await asyncio.wait(left, timeout=within)

    def _answered(self, request: asyncio.Task[None]) -> None:
        self._requests.discard(request)
        if request.cancelled():
            return
        crash = request.exception()
        if crash is None and self._message_accumulator._batches:  # noqa: SLF001 - as its `flush`
            try:
                self.send_ready()
            except Exception as error:  # noqa: BLE001 - whatever it is, nobody else would send what waits
                crash = error
        if crash is not None:
            self._fail(crash)

    async def _sender_routine(self) -> None:
        """Look for leaders that are unknown. All else is sent where it is handed over, or answered."""
        while True:
            await self._leaderless.wait()
            self._leaderless.clear()
            await self.client.force_metadata_update()
            self.send_ready()
            if self._leaderless.is_set():  # an election takes a while, and nothing else here would wait
                await asyncio.sleep(self._retry_backoff)

    def _fail_all(self, routine: asyncio.Task[None]) -> None:
        """Called at the routine's end. aiokafka's would fail a transaction too, and fail itself as there is none."""
        if not routine.cancelled() and (crash := routine.exception()) is not None:
            self._fail(crash)

    def _fail(self, crash: BaseException) -> None:
        """Whatever it is, every batch fails with it, and the sink begins anew."""
        self._ended = True
        error = crash
        if not isinstance(crash, KafkaError):
            _log.error("kafka_sender_crashed", exc_info=crash)
            error = KafkaError(f"aiokafka's sender crashed: {crash!r}")
            error.__cause__ = crash
        fail_all(self._message_accumulator, error)

    async def _exchange(self, node: int, batches: Mapping[TopicPartition, MessageBatch], weight: int) -> None:
        await _Exchange(self, batches).do(node)
        self._muted_partitions.difference_update(batches)
        self._owed[node] -= weight


class _Exchange(SendProduceReqHandler):  # type: ignore[misc]
    """One request and its answer."""

    def create_request(self) -> Request:
        topics = defaultdict(list)
        for at, batch in self._batches.items():
            topics[at.topic].append((at.partition, batch.get_data_buffer()))
        sender = self._sender
        return Request(sender._acks, sender._request_timeout_ms, list(topics.items()))  # noqa: SLF001

    def handle_response(self, response: Any) -> None:
        """Take the answers; a batch that the response says nothing of would wait for ever."""
        super().handle_response(response)
        for at, batch in self._batches.items():
            if not batch.future.done() and batch not in self._to_reenqueue:
                batch.failure(KafkaError(f"Kafka's answer says nothing of partition {at.partition} of {at.topic!r}"))


class LeanProducer(AIOKafkaProducer):  # type: ignore[misc]
    """A producer for batches, with that sender."""

    def __init__(self, *, acks: int, retry_backoff_ms: int, **arguments: Any) -> None:
        """Take what AIOKafkaProducer takes."""
        super().__init__(acks=acks, retry_backoff_ms=retry_backoff_ms, **arguments)
        self._sender = LeanSender(
            self.client,
            acks=acks,
            txn_manager=self._txn_manager,
            message_accumulator=self._message_accumulator,
            retry_backoff_ms=retry_backoff_ms,
            request_timeout_ms=self._request_timeout_ms,
        )

    def create_batch(self) -> RecordBatch:
        """An empty batch."""
        accumulator = self._message_accumulator
        return RecordBatch(accumulator._batch_size, accumulator._compression_type)  # noqa: SLF001

    def hand_over(self, batch: RecordBatch, topic: str, partition: int) -> asyncio.Future[Any]:
        """Queue a batch for a partition that has none unanswered, for the next `flush`.

        The future is done when Kafka has answered for it. `send_batch` may wait, for metadata or for the batch before.

        Raises:
            KafkaError: the producer takes no more.
        """
        accumulator = self._message_accumulator
        if accumulator._exception is not None:  # noqa: SLF001
            raise accumulator._exception  # noqa: SLF001
        batch.close()
        queued: MessageBatch = accumulator._append_batch(batch, TopicPartition(topic, partition))  # noqa: SLF001
        future: asyncio.Future[Any] = queued.future
        return future

    def flush(self) -> None:
        """Send what was handed over, now or when the nodes that lead it owe less."""
        self._sender.send_ready()

    async def end(self, within: float) -> None:
        """Send nothing more, not even what was handed over, within so many seconds; the connections stay open."""
        await self._sender.end(within)
