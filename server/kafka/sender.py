"""Produce requests: which batches go together to which node, and what becomes of them.

aiokafka's sender wakes a task for every batch, which waits for a set of futures twice a request; each request is one
more task. Here requests leave where batches are handed over, and their answers are taken where they are read. Tasks are
for what has to wait: to connect, to try again, to look for unknown leaders (docs/decisions/0018-sender.md).
Connections, metadata, producer ids and the meaning of answers are aiokafka's.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, defaultdict
from typing import TYPE_CHECKING, Any

import structlog
from aiokafka import AIOKafkaProducer
from aiokafka.client import ConnectionGroup
from aiokafka.errors import (
    KafkaError,
    LeaderNotAvailableError,
    NodeNotReadyError,
    NotLeaderForPartitionError,
)
from aiokafka.producer.sender import Sender, SendProduceReqHandler, log
from aiokafka.structs import TopicPartition

from server.kafka.batch import RecordBatch
from server.kafka.produce_request import Request

if TYPE_CHECKING:
    from collections.abc import Coroutine, Sequence

    from server.kafka.batch import Answered
    from server.kafka.connection import Connection

# From so many bytes on Kafka gets the next request before it has answered the last: one to work on, one to go on with.
LARGE_REQUEST_BYTES = 256 * 1024
_MOST_OWED = 2
_NO_LEADER_NOW = -1
_log = structlog.get_logger()


class LeanSender(Sender):  # type: ignore[misc] # aiokafka has no types
    """Sends what waits for a node as soon as that node owes no answer, or only one to a large request.

    Kafka reads a connection's next request when it has answered the last. If that is on its way already, it takes it at
    once; otherwise it waits until we have acknowledged what it confirmed and built what comes next. Not more than two:
    each waits for the replicas on its own. Small batches wait, so that they gather.
    """

    def __init__(self, client: Any, **arguments: Any) -> None:
        super().__init__(client, message_accumulator=None, **arguments)
        self.loop = asyncio.get_running_loop()
        self._unanswered: dict[TopicPartition, RecordBatch] = {}  # all that were handed over
        self._waiting: dict[TopicPartition, RecordBatch] = {}  # those of them that can be sent
        self._waits: set[asyncio.Task[None]] = set()  # for a connection, or to try again
        self._owed: Counter[int] = Counter()  # of each node; a small request counts as much as may be owed
        self._leaderless = asyncio.Event()
        self._failure: KafkaError | None = None
        self.ended = False  # nothing is sent any more, and no answer taken

    def take(self, batch: RecordBatch, at: TopicPartition, answered: Answered) -> None:
        """Queue a batch for a partition that has none unanswered; `answered` hears what Kafka says of it.

        Raises:
            KafkaError: nothing is taken any more.
        """
        if self._failure is not None:
            raise self._failure
        if at in self._unanswered:
            raise RuntimeError(f"partition {at.partition} of {at.topic!r} has a batch that is not answered")
        batch.close()
        batch.at = at
        batch.answered = answered
        batch.give_up_at = time.monotonic() + self._request_timeout_ms / 1000
        self._unanswered[at] = self._waiting[at] = batch

    def send_ready(self) -> None:
        """Send what waits for each node that may owe more than it does."""
        if self.ended:
            return
        nodes: dict[int, list[RecordBatch]] = {}
        for at, batch in list(self._waiting.items()):
            node = self.client.cluster.leader_for_partition(at)
            if node is None or node == _NO_LEADER_NOW:
                self._without_leader(batch, LeaderNotAvailableError() if node else NotLeaderForPartitionError())
            elif self._owed[node] < _MOST_OWED:
                del self._waiting[at]
                nodes.setdefault(node, []).append(batch)
        for node, batches in nodes.items():
            if sum(batch.size() for batch in batches) < LARGE_REQUEST_BYTES:
                self._send(_Exchange(self, node, batches, weight=_MOST_OWED))
                continue
            # Of several the node gets one request now, and one to go on with.
            parts = 1 if self._owed[node] else min(_MOST_OWED, len(batches))
            for part in range(parts):
                self._send(_Exchange(self, node, batches[part::parts], weight=1))

    def number(self, batch: RecordBatch) -> None:
        """Give the batch its sequence number, unless it has one or idempotence is off."""
        if self._txn_manager is not None and not batch.numbered:
            numbers = self._txn_manager
            first = numbers.sequence_number(batch.at)
            numbers.increment_sequence_number(batch.at, batch.record_count())
            batch._set_producer_state(numbers.producer_id, numbers.producer_epoch, first)  # noqa: SLF001 - as its queue
            batch.numbered = True

    def fail_all(self, error: KafkaError) -> None:
        """Fail every batch that is not answered, wherever it is; from now on none is taken."""
        self._failure = error
        self._waiting.clear()
        unanswered, self._unanswered = self._unanswered, {}
        for batch in unanswered.values():
            batch.failure(error)

    async def end(self, within: float) -> None:
        """Send nothing more, and give up what is on its way or waits for a connection, within so many seconds."""
        self.ended = True
        left = {*self._waits}
        if self._sender_task is not None:
            left.add(self._sender_task)
        for each in left:
            each.cancel()
        if left:
            await asyncio.wait(left, timeout=within)

    # --- a request and its answer -----------------------------------------------------------------------------------

    def _send(self, exchange: _Exchange) -> None:
        self._owed[exchange.node] += exchange.weight
        connection = self._connection(exchange.node)
        if connection is None:
            self._start(self._connect(exchange))
        else:
            self._write(exchange, connection)

    def _connection(self, node: int) -> Connection | None:
        # `ready` has to be awaited, and connects; there is no public way only to ask.
        connection: Connection | None = self.client._conns.get((node, ConnectionGroup.DEFAULT))  # noqa: SLF001
        return connection if connection is not None and connection.connected() else None

    async def _connect(self, exchange: _Exchange) -> None:
        await self.client.ready(exchange.node)
        connection = self._connection(exchange.node)
        if connection is None:
            self._without_answer(exchange, NodeNotReadyError(f"node {exchange.node} can't be reached"))
        else:
            self._write(exchange, connection)

    def _write(self, exchange: _Exchange, connection: Connection) -> None:
        if self.ended:  # by a crash meanwhile: its batches were failed, and will be sent by another producer
            return
        try:
            connection.produce(exchange.create_request(), exchange)
        except KafkaError as error:
            self._without_answer(exchange, error)
        except Exception as error:  # noqa: BLE001 - whatever it is, nobody else would send what waits
            self._crashed(error)

    def answered(self, exchange: _Exchange, response: Any) -> None:
        """Take the answer to a request, and send what waited for it."""
        try:
            exchange.handle_response(response)
            self._settle(exchange, answered=True)
        except Exception as error:  # noqa: BLE001 - whatever it is, nobody else would send what waits
            self._crashed(error)

    def unanswered(self, exchange: _Exchange, error: BaseException) -> None:
        """There will be no answer to a request."""
        if self.ended:
            return
        try:
            if isinstance(error, KafkaError):
                self._without_answer(exchange, error)
            else:
                self._crashed(error)
        except Exception as crash:  # noqa: BLE001 - as above
            self._crashed(crash)

    def _without_answer(self, exchange: _Exchange, error: KafkaError) -> None:
        exchange.handle_error(error)
        self._settle(exchange, answered=False)

    def _settle(self, exchange: _Exchange, *, answered: bool) -> None:
        """Forget what was answered; what is to be sent again is, after a while.

        A node that answers works: what it refused holds up nothing else. One that does not is tried by one request.
        """
        for batch in exchange.batches:
            if batch.over:
                self._unanswered.pop(batch.at, None)
        again = bool(exchange.again) and not self.ended
        if again:
            self._start(self._begin_again(exchange))
        if answered or not again:
            self._free_node(exchange)

    async def _begin_again(self, exchange: _Exchange) -> None:
        """Send after a while what is to be sent again."""
        await asyncio.sleep(self._retry_backoff)
        await self.client._maybe_wait_metadata()  # noqa: SLF001 - what was refused has perhaps moved
        self._waiting = {batch.at: batch for batch in exchange.again if not batch.over} | self._waiting
        self._free_node(exchange)

    def _free_node(self, exchange: _Exchange) -> None:
        """Let the node have what waits; the exchange counts no more, however often this is called."""
        self._owed[exchange.node] -= exchange.weight
        exchange.weight = 0
        if self._waiting:
            self.send_ready()

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = self.loop.create_task(work)
        self._waits.add(task)
        task.add_done_callback(self._task_ended)

    def _task_ended(self, task: asyncio.Task[None]) -> None:
        self._waits.discard(task)
        if not task.cancelled() and (crash := task.exception()) is not None:
            self._crashed(crash)

    # --- failures ---------------------------------------------------------------------------------------------------

    def _without_leader(self, batch: RecordBatch, error: KafkaError) -> None:
        self._leaderless.set()
        if batch.give_up_at < time.monotonic():
            del self._waiting[batch.at], self._unanswered[batch.at]
            batch.failure(error)

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
            self._crashed(crash)

    def _crashed(self, crash: BaseException) -> None:
        """Whatever it is, every batch fails with it, and the sink begins anew."""
        self.ended = True
        error = crash
        if not isinstance(error, KafkaError):
            _log.error("kafka_sender_crashed", exc_info=crash)
            error = KafkaError(f"the sender crashed: {crash!r}")
            error.__cause__ = crash
        self.fail_all(error)


class _Exchange(SendProduceReqHandler):  # type: ignore[misc]
    """One request and its answer. `again` are the batches that are to be sent once more."""

    def __init__(self, sender: LeanSender, node: int, batches: Sequence[RecordBatch], *, weight: int) -> None:
        super().__init__(sender, {batch.at: batch for batch in batches})
        self.node = node
        self.batches = self._batches.values()
        self.weight = weight
        self.again: list[RecordBatch] = self._to_reenqueue  # aiokafka's name for it
        self._over = False

    # An `Asker`.

    def done(self) -> bool:
        """Whether the answer is here, or nobody waits for it any more."""
        return self._over or self._sender.ended

    def set_result(self, answer: Any) -> None:
        """The answer."""
        self._over = True
        self._sender.answered(self, answer)

    def set_exception(self, error: BaseException) -> None:
        """There will be none; that is acted on in the next turn of the event loop."""
        self._over = True
        self._sender.loop.call_soon(self._sender.unanswered, self, error)

    # What is asked, and what the answer means.

    def create_request(self) -> Request:
        """Number the batches, and put them together by topic."""
        topics = defaultdict(list)
        sender = self._sender
        for batch in self.batches:
            sender.number(batch)
            topics[batch.at.topic].append((batch.at.partition, batch._build()))  # noqa: SLF001 - aiokafka's own
        return Request(sender._acks, sender._request_timeout_ms, list(topics.items()))  # noqa: SLF001

    def handle_response(self, response: Any) -> None:
        """Take the answers; a batch that the response says nothing of would wait for ever."""
        super().handle_response(response)
        for batch in self.batches:
            if not batch.over and batch not in self.again:
                at = batch.at
                batch.failure(KafkaError(f"Kafka's answer says nothing of partition {at.partition} of {at.topic!r}"))

    def handle_error(self, error: KafkaError) -> None:
        """There is no answer."""
        log.warning("Got error produce response: %s", error)  # `Complaints` hear aiokafka's logger
        if getattr(error, "invalid_metadata", False):
            self._client.force_metadata_update()
        for batch in self.batches:
            if self._can_retry(error, batch):
                self.again.append(batch)
            else:
                batch.failure(error)

    def _can_retry(self, error: KafkaError, batch: RecordBatch) -> bool:
        """As long as it takes if Kafka knows the batch again by its number, else for a while."""
        numbered = self._sender._txn_manager is not None  # noqa: SLF001 - of its sender
        return bool(error.retriable) and (numbered or time.monotonic() <= batch.give_up_at)


class LeanProducer(AIOKafkaProducer):  # type: ignore[misc]
    """A producer for batches, with that sender."""

    def __init__(self, *, acks: int, retry_backoff_ms: int, **arguments: Any) -> None:
        """Take what AIOKafkaProducer takes."""
        super().__init__(acks=acks, retry_backoff_ms=retry_backoff_ms, **arguments)
        self._sender = LeanSender(
            self.client,
            acks=acks,
            txn_manager=self._txn_manager,
            retry_backoff_ms=retry_backoff_ms,
            request_timeout_ms=self._request_timeout_ms,
        )
        options = self._message_accumulator  # where aiokafka keeps them, with its defaults
        self._batch_bytes, self._compression = options._batch_size, options._compression_type  # noqa: SLF001 - as above

    def create_batch(self) -> RecordBatch:
        """An empty batch."""
        return RecordBatch(self._batch_bytes, self._compression)

    def hand_over(self, batch: RecordBatch, topic: str, partition: int, answered: Answered) -> None:
        """Queue a batch for a partition that has none unanswered, for the next `flush`.

        aiokafka's `send_batch` may wait, for metadata or for the batch before.

        Raises:
            KafkaError: the producer takes no more.
        """
        self._sender.take(batch, TopicPartition(topic, partition), answered)

    def flush(self) -> None:
        """Send what was handed over, now or when the nodes that lead it owe less."""
        self._sender.send_ready()

    def fail_all(self, error: KafkaError) -> None:
        """Fail every batch that is not answered; from now on none is taken."""
        self._sender.fail_all(error)

    async def end(self, within: float) -> None:
        """Send nothing more, not even what was handed over, within so many seconds; the connections stay open."""
        await self._sender.end(within)
