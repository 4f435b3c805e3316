"""The sink of one mapping: records in, confirmations out, in order per partition.

At most one batch per partition is unconfirmed, and the next grows meanwhile. After any failed batch nothing more is
sent: the other futures get a bounded time, the producer is abandoned, and everything unconfirmed goes out again per
partition in receive order through a new one (design.md, 11). A poison record is found by halving the batch.

What is ready is sent at once: gathering is the reader's part (core/pace.py).
"""

from __future__ import annotations

import asyncio
import functools
import time
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from aiokafka.errors import KafkaError

from server.core.backoff import Backoff
from server.core.failures import Kind, partition_gone
from server.core.lifecycle import Reason
from server.core.mapping import OnPoison
from server.core.record import size_of
from server.kafka.lanes import build
from server.kafka.outbox import Outbox
from server.kafka.partitioners import partitioner
from server.kafka.producer import Producer, classify
from server.kafka.rounds import Rounds
from server.kafka.tls import ConfigurationError
from server.kafka.watch import Watch
from server.tasks import to_the_end

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from server.core.acks import AckWindow, Arrival, Delivery
    from server.core.failures import Failure
    from server.core.mapping import Mapping
    from server.kafka.lanes import Chunk, Flight, Lane
    from server.kafka.producer import Cluster

# Kafka closes the connection on requests above socket.request.max.bytes (100 MiB by default), and aiokafka would
# retry such a request for ever.
DEFAULT_RECORD_LIMIT = 100_000_000
_IN_FLIGHT_BYTES = 32 * 1024 * 1024
_LAST_ANSWERS_SECONDS = 2.0
_UNNAMED_ATTEMPTS = 3
_SMALLEST_BATCH_BYTES = 16_384


# A message that Kafka has not confirmed, with the arrival it is part of.
Unconfirmed: TypeAlias = "tuple[Arrival[Any], Delivery]"


class SinkStoppedError(Exception):
    """Only an operator can mend this: poison under `stop`, a refused dead letter, or an invalid topic name."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason.detail)
        self.reason = reason


class Outcomes(Protocol):
    """Who counts what became of the messages."""

    def delivered(self, messages: int, size: int) -> None:
        """Kafka confirmed these, in batches of `size` bytes before compression."""

    def dead_lettered(self, messages: int) -> None:
        """Kafka confirmed these as dead letters."""

    def dropped(self, reason: str, messages: int) -> None:
        """These were dropped by rule."""

    def waited(self, seconds: float, messages: int) -> None:
        """So many messages were received so long before Kafka confirmed them."""

    def kafka_reconnected(self, reason: str) -> None:
        """A producer follows one that ended for this reason (its code)."""

    def progressed(self) -> None:
        """Called once after a round of confirmations: something may be due now."""

    def kafka_trouble(self, reason: Reason | None) -> None:
        """Kafka takes no records, and why; None when it does again."""


class _BatchFailedError(Exception):
    def __init__(self, flight: Flight, failure: Failure) -> None:
        super().__init__(failure.reason.detail)
        self.flight = flight
        self.failure = failure


class Sink:
    """Writes the records of one mapping."""

    def __init__(
        self,
        cluster: Cluster,
        mapping: Mapping,
        window: AckWindow[Any],
        *,
        outcomes: Outcomes,
        random: Callable[[], float],
    ) -> None:
        self._cluster = cluster
        self._on_poison = mapping.on_poison
        self._window = window
        self._outcomes = outcomes
        self._backoff = Backoff(random)
        self._outbox = Outbox(mapping, partitioner(cluster.options.partitioner))
        self._flights: set[Flight] = set()
        self._finished: list[Flight] = []
        self._last_answer: asyncio.Future[None] | None = None  # while it is waited for
        self._rounds: Rounds | None = None  # while there is a producer
        self._idle = asyncio.Event()
        self._idle.set()
        self._fatal: Reason | None = None
        self._watch = Watch(cluster, self._flights, report=outcomes.kafka_trouble, due=self._round_soon)
        self._stuck: list[Unconfirmed] = []
        self._compresses = bool(cluster.options.producer.get("compression_type"))
        self._batch_bytes: int = cluster.options.producer.get("max_batch_size", 1_000_000)
        self.unconfirmed = 0
        self.in_flight_bytes = 0

    # --- records in -------------------------------------------------------------------------------------------------

    def add(self, arrival: Arrival[Any], messages: Sequence[Delivery]) -> None:
        """Take messages of one arrival, in receive order. Opens parts of the arrival; never blocks."""
        self.unconfirmed += len(messages)
        self._idle.clear()
        for message, detail in self._outbox.add(arrival, messages):
            self._unmappable(arrival, message, detail)
        if self._outbox.ready:
            self._round_soon()

    # --- the life of the sink ---------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Write until cancelled; every producer it made is gone when it ends.

        Raises:
            SinkStoppedError: only an operator can mend it.
        """
        self._cluster.sinks += 1
        try:
            await self._write()
        finally:
            self._cluster.sinks -= 1
            self._watch.end()

    async def _write(self) -> None:
        ended_by = ""  # why the last producer that had started ended
        while True:
            producer: Producer | None = None
            failed: _BatchFailedError | None = None
            serving = False
            try:
                with self._watch.starting():
                    producer = await Producer.start(self._cluster, max_batch_size=self._batch_bytes)
                    await producer.fetch_metadata(self._outbox.topics)
                self._watch.started()
                if ended_by:
                    self._outcomes.kafka_reconnected(ended_by)
                serving = True
                await self._serve(producer)
            except _BatchFailedError as error:
                failed, ended_by = error, error.failure.reason.code
            except (ConfigurationError, KafkaError, OSError) as error:  # TimeoutError is an OSError
                code = self._watch.not_started(error, self._outbox.main.name)
                ended_by = code if serving else ended_by
            finally:
                await self._abandon(producer)
            if failed is None or self._judge(failed):
                await asyncio.sleep(self._backoff.next_delay())

    async def _abandon(self, producer: Producer | None) -> None:
        """End the producer and take back what it had not confirmed."""
        self._watch.ending()
        try:
            if producer is not None:
                await to_the_end(producer.abandon())
        finally:
            self._take_back()

    def _take_back(self) -> None:
        for flight in self._flights:
            self._outbox.take_back(flight)
        self._flights.clear()
        self._finished.clear()
        self.in_flight_bytes = 0

    async def drained(self) -> None:
        """Wait until every record taken is confirmed."""
        await self._idle.wait()

    def unconfirmed_messages(self) -> list[Unconfirmed]:
        """The messages that are not confirmed; only once `run` has ended."""
        return self._stuck + self._outbox.unsent()

    async def _serve(self, producer: Producer) -> None:
        """Make a round whenever there is something to do, until one finds what ends the producer."""
        self._rounds = Rounds(functools.partial(self._round, producer))
        try:
            await self._rounds.until_one_fails()
        except (_BatchFailedError, SinkStoppedError):
            await self._last_answers()
            raise
        finally:
            self._rounds = None

    def _round_soon(self) -> None:
        if self._rounds is not None:
            self._rounds.soon()

    def _round(self, producer: Producer) -> None:
        """Take Kafka's answers, send what is ready, acknowledge, and look at the cluster when that is due."""
        missing = self._outbox.follow(producer.partitions)
        confirmed = bool(self._finished)
        failed = self._failed()
        try:
            if failed is None:
                self._send(producer)
        finally:
            if confirmed:  # behind it: Kafka has the next batch to work on while we acknowledge the last
                self._progressed()
        if failed is not None:
            raise failed
        if self._fatal is not None:
            raise SinkStoppedError(self._fatal)
        if self._watch.looks.due:
            producer.check()
            needed = next((topic for topic in missing if topic is self._outbox.main or topic.waiting), None)
            self._watch.look(producer, missing=missing, needed=needed)

    # --- sending ----------------------------------------------------------------------------------------------------

    def _send(self, producer: Producer) -> None:
        """Send what is ready."""
        if not self._outbox.ready:
            return
        now = time.monotonic()
        for lane in list(self._outbox.ready):
            if self.in_flight_bytes > _IN_FLIGHT_BYTES:
                break
            if lane.partition >= self._outbox.topics[lane.topic].visible:
                continue  # its metadata are on their way
            del self._outbox.ready[lane]
            flight = self._build(lane, producer, now)
            if flight is None:
                continue
            lane.flight = flight
            if self.in_flight_bytes and self.in_flight_bytes + flight.size > DEFAULT_RECORD_LIMIT:
                self._outbox.take_back(flight)  # all of it may go to one node, in one request
                break
            self._dispatch(producer, flight)
        producer.flush()
        self._watch.looks.sent()

    def _build(self, lane: Lane, producer: Producer, now: float) -> Flight | None:
        limit = self._outbox.topics[lane.topic].limit(self._cluster.options.record_limit or DEFAULT_RECORD_LIMIT, now)
        while lane.queue and self._fatal is None:
            flight, poison = build(lane, producer.create_batch(), limit=limit, now=now)
            if flight is not None:
                self._outbox.sent(flight)
                return flight
            if poison is None:
                raise RuntimeError(f"an empty batch for partition {lane.partition} of {lane.topic!r}")
            chunk, index, size = poison
            self._poison(
                lane,
                chunk,
                index,
                Reason("message_too_large", f"the record has {size} bytes, the limit of {lane.topic!r} is {limit}"),
            )
        return None

    def _dispatch(self, producer: Producer, flight: Flight) -> None:
        lane = flight.lane
        self._flights.add(flight)
        self.in_flight_bytes += flight.size
        batch, flight.batch = flight.batch, None
        producer.hand_over(batch, lane.topic, lane.partition, functools.partial(self._answered, flight))

    def _answered(self, flight: Flight, error: BaseException | None) -> None:
        flight.answered, flight.error = True, error
        self._finished.append(flight)
        self._round_soon()
        if self._last_answer is not None and not self._unanswered() and not self._last_answer.done():
            self._last_answer.set_result(None)

    def _unanswered(self) -> bool:
        return not all(flight.answered for flight in self._flights)

    # --- confirmations ----------------------------------------------------------------------------------------------

    def _failed(self) -> _BatchFailedError | None:
        """Account for what was answered; returns a failure, if there is one."""
        failed = self._take_answers()
        if failed is None and self._watch.looks.due:
            failed = self._stranded()
        return failed

    def _stranded(self) -> _BatchFailedError | None:
        """A batch for a partition that is gone, if there is one: aiokafka would try it again for 40 s."""
        for flight in self._flights:
            lane = flight.lane
            if 0 < self._outbox.topics[lane.topic].visible <= lane.partition:
                return _BatchFailedError(flight, partition_gone(lane.partition, topic=lane.topic))
        return None

    async def _last_answers(self) -> None:
        """Give what is on its way a bounded time to be confirmed, so that it is not repeated; nothing more is sent."""
        if self._unanswered():
            self._last_answer = asyncio.get_running_loop().create_future()
            try:
                await asyncio.wait([self._last_answer], timeout=_LAST_ANSWERS_SECONDS)
            finally:
                self._last_answer = None
        self._take_answers()
        self._progressed()

    def _take_answers(self) -> _BatchFailedError | None:
        """Account for every finished flight; returns the first failure."""
        finished, self._finished = self._finished, []
        landed = [flight for flight in finished if flight.error is None]
        if landed:
            self._landed(landed)
        for flight in finished:
            if flight.error is not None:
                return _BatchFailedError(flight, classify(flight.error, topic=flight.lane.topic))
        return None

    def _landed(self, flights: Sequence[Flight]) -> None:
        """Kafka has these. What can be said of all together is: with little traffic most batches hold two records."""
        delivered = delivered_bytes = dead = 0
        waited: dict[Arrival[Any], int] = {}
        for flight in flights:
            lane = flight.lane
            lane.flight = None
            self._flights.discard(flight)
            self.in_flight_bytes -= flight.size
            self.unconfirmed -= flight.records
            lane.cleared(flight.records)
            self._outbox.landed(lane)
            for chunk, start, stop in flight.pieces:
                waited[chunk.arrival] = waited.get(chunk.arrival, 0) + stop - start
                self._finish(chunk, stop - start)
            if flight.first()[0].dead_letter:  # then all of them: they have a topic of their own
                dead += flight.records
            else:
                delivered += flight.records
                delivered_bytes += flight.size
        self._backoff.reset()
        self._watch.confirmed()
        now = time.monotonic()
        for arrival, messages in waited.items():
            self._outcomes.waited(now - arrival.at, messages)
        if delivered:
            self._outcomes.delivered(delivered, delivered_bytes)
        if dead:
            self._outcomes.dead_lettered(dead)

    def _finish(self, chunk: Chunk, records: int) -> None:
        chunk.done += records
        if chunk.done == len(chunk.messages):
            self._window.confirm(chunk.arrival)

    def _progressed(self) -> None:
        if not self.unconfirmed:
            self._idle.set()
        self._outcomes.progressed()

    # --- failures ---------------------------------------------------------------------------------------------------

    def _judge(self, failed: _BatchFailedError) -> bool:
        """Decide what a failed batch means; everything is back in its queue. Returns whether to wait before going on.

        Raises:
            SinkStoppedError: only an operator can mend it.
        """
        flight, failure = failed.flight, failed.failure
        lane = flight.lane
        if failure.kind is Kind.INVALID_TOPIC:
            raise SinkStoppedError(failure.reason)
        if failure.kind is Kind.POISON:
            if flight.records > 1:
                lane.suspect(flight.records)
                if failure.too_large:
                    self._batch_bytes = max(_SMALLEST_BATCH_BYTES, min(self._batch_bytes, flight.size // 2))
                return False
            chunk, index = flight.first()
            if failure.too_large and not self._compresses:  # Kafka's limit is for what is compressed
                route, message = chunk.routes[index], chunk.messages[index]
                size = size_of(route.key, route.value_bytes(message.payload), route.headers)
                self._outbox.topics[lane.topic].learn_limit(size, time.monotonic())
            lane.end_search()
            self._poison(lane, chunk, index, failure.reason)
            if self._fatal is not None:
                raise SinkStoppedError(self._fatal)
            return False
        self._watch.refused(failure.reason)
        if failure.kind is Kind.UNNAMED:
            lane.unnamed_failures += 1
            if lane.unnamed_failures >= _UNNAMED_ATTEMPTS and flight.records > 1:
                lane.suspect(flight.records)  # shows which record it is; it is never dropped
        return True

    def _poison(self, lane: Lane, chunk: Chunk, index: int, reason: Reason) -> None:
        """Deal with the record at the front of the lane as `on_poison` says."""
        route, message = chunk.routes[index], chunk.messages[index]
        if chunk.dead_letter:
            self._fatal = Reason(
                "dead_letter_refused",
                f"a message on {message.topic!r} can be written neither to {self._outbox.main.name!r} nor to the dead "
                f"letter topic {lane.topic!r}: {reason.detail}",
            )
            return
        if not self._resolve_poison(chunk.arrival, message, route.key, reason):
            return
        self._outbox.skip(lane)
        self._finish(chunk, 1)
        self._progressed()

    def _unmappable(self, arrival: Arrival[Any], message: Delivery, detail: str) -> None:
        arrival.open_parts += 1
        if self._resolve_poison(arrival, message, message.topic.encode(), Reason("not_mappable", detail)):
            self._window.confirm(arrival)
            if not self.unconfirmed:
                self._idle.set()
        else:
            self._stuck.append((arrival, message))

    def _resolve_poison(self, arrival: Arrival[Any], message: Delivery, key: bytes | None, reason: Reason) -> bool:
        """Whether the message is out of the way: dropped, or on its way as a dead letter."""
        if self._on_poison is OnPoison.STOP:
            self._fatal = self._fatal or Reason(
                f"poison_{reason.code}",
                f"a message on {message.topic!r} can't be forwarded: {reason.detail}; it stays with the broker. Set "
                "on_poison to drop or dead_letter, or mend the cause and resume",
            )
            self._round_soon()
            return False
        if self._on_poison is OnPoison.DROP:
            self.unconfirmed -= 1
            self._outcomes.dropped(reason.code, 1)
        else:
            self._outbox.add_dead_letter(arrival, message, key, reason)
            self._round_soon()
        return True
