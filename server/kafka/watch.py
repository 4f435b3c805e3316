"""Watching one cluster through a sink's producers: is a topic missing, does nobody answer, and why.

aiokafka retries what it calls retriable for ever, in silence, so the sink has to look for itself.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from aiokafka.errors import BrokerResponseError, for_code

from server.core.failures import kafka_failure
from server.core.lifecycle import Reason
from server.kafka.condition import Cause, Condition
from server.kafka.errorlog import Complaints, listen
from server.kafka.looks import CLOCK_SECONDS, STALL_SECONDS, Looks
from server.kafka.producer import classify

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

    from server.kafka.lanes import Flight
    from server.kafka.producer import Cluster, Producer
    from server.kafka.topic import Topic

LOOK_SECONDS = 0.5
_METADATA_SECONDS = 2.0
_TOPIC_MISSING, _NO_LEADER, _TOPIC_NOT_AUTHORIZED = 3, 5, 29


class Watch:
    """What a sink knows of Kafka's condition; `report` hears of every change: a reason, or None while all is well.

    `flights` are the sink's batches without an answer, and `due` hears that it is time to `look`.
    """

    def __init__(
        self,
        cluster: Cluster,
        flights: Collection[Flight],
        *,
        report: Callable[[Reason | None], None],
        due: Callable[[], None],
    ) -> None:
        self.looks = Looks(flights, due, cluster.ticks)
        self._questions = cluster.questions
        self._flights = flights
        self._servers = cluster.bootstrap_servers
        self._complaints = Complaints()
        self._condition = Condition(report)
        self._metadata: asyncio.Future[bool] | None = None
        self._metadata_asked = self._ask_at = 0.0

    @contextmanager
    def starting(self) -> Iterator[None]:
        """A producer is started here: listen to it, and say if it takes long."""
        self._complaints = listen()
        slow = asyncio.get_running_loop().call_later(STALL_SECONDS, self._slow_to_start)
        try:
            yield
        finally:
            slow.cancel()

    def _slow_to_start(self) -> None:
        if not self._condition.has(Cause.START):
            silence = f"no answer from {self._servers} for more than {STALL_SECONDS:g} s"
            self._condition.note(Cause.START, self._explained(Reason("kafka_stalled", silence)))
            self._condition.tell()

    def not_started(self, error: BaseException, topic: str) -> str:
        """No producer could be started, or it broke as a whole. Returns the reason's code."""
        reason = classify(error, topic=topic, servers=self._servers).reason
        code, connection = self._complaints.code(), self._complaints.connection()
        # aiokafka says only that it could not connect, or nothing in time, whatever the reason was.
        if connection is not None and not isinstance(error, BrokerResponseError):
            reason = connection
        elif code is not None:
            reason = self._with_log(kafka_failure(code, for_code(code).__name__, "", topic=topic).reason)
        else:
            reason = self._with_log(reason)
        self._condition.note(Cause.START, reason)
        self._condition.tell()
        return reason.code

    def ending(self) -> None:
        """The producer is ended: what it complains of now is our own doing."""
        self._complaints.over = True

    def started(self) -> None:
        """A producer was started, and has its metadata."""
        now = time.monotonic()
        self._metadata, self._metadata_asked, self._ask_at = None, now, self._questions.next_turn(self._ask_sooner, now)
        self._condition.note(Cause.START, None)
        self.looks.due = True

    def refused(self, reason: Reason) -> None:
        """Kafka refused a batch."""
        self._condition.note(Cause.SENDS, reason)
        self._condition.tell()

    def confirmed(self) -> None:
        """Kafka confirmed a batch."""
        self._condition.note(Cause.SENDS, None)
        self._condition.note(Cause.REACH, None)

    def look(self, producer: Producer, *, missing: list[Topic], needed: Topic | None) -> None:
        """Look at the cluster: at the topics it does not show, one of them `needed`, and at what it owes answers to."""
        for topic in missing:
            producer.watch(topic.name)
        self._condition.note(Cause.TOPIC, self._missing_reason(producer, needed.name) if needed else None)
        self._ask(producer, soon=bool(missing), idle=not self._flights)
        now = time.monotonic()
        leaderless = {topic: producer.leaderless(topic) for topic in {flight.lane.topic for flight in self._flights}}
        stalled: dict[str, float] = {}  # topics, and since when
        for flight in self._flights:
            lane = flight.lane
            # Without a leader there is no hope to wait for: aiokafka gives up after 40 s, and all begins again.
            if now - flight.sent_at > STALL_SECONDS or lane.partition in leaderless[lane.topic]:
                stalled[lane.topic] = min(flight.sent_at, stalled.get(lane.topic, now))
        self._condition.note(Cause.STALL, self._stall_reason(producer, stalled) if stalled else None)
        self._condition.tell()
        if self._flights or missing or self._condition.has(Cause.REACH):
            self.looks.plan(now + LOOK_SECONDS)
        elif self._metadata is not None:  # or before: when they come
            self.looks.plan(self._metadata_asked + STALL_SECONDS + CLOCK_SECONDS)
        else:
            self.looks.plan(max(now + LOOK_SECONDS, self._ask_at))

    def end(self) -> None:
        """The sink ends: no look and no question any more."""
        self.looks.end()
        self._questions.leave(self._ask_sooner)

    def _ask_sooner(self, at: float) -> None:
        """Another sink got no answer."""
        self._ask_at = min(self._ask_at, at)
        self.looks.sooner(self._ask_at)

    def _ask(self, producer: Producer, *, soon: bool, idle: bool) -> None:
        """Ask for metadata now and then: it shows missing topics, and a Kafka that is away while nothing flows."""
        now, asked = time.monotonic(), self._metadata
        silent = asked is not None and not asked.done() and now - self._metadata_asked > STALL_SECONDS
        if asked is not None and asked.done():
            self._metadata = None
            silent = asked.cancelled() or not asked.result()
            self._condition.note(Cause.REACH, None)
            if not silent and not soon:
                self._ask_at = self._questions.next_turn(self._ask_sooner, now)
        if silent:
            unreachable = Reason("kafka_unreachable", f"no metadata from {self._servers}")
            self._condition.note(Cause.REACH, self._explained(unreachable))
            self._questions.doubt(now)
        if soon or self._condition.has(Cause.REACH):
            due = now - self._metadata_asked >= _METADATA_SECONDS
        else:
            due = self._ask_at - now < CLOCK_SECONDS
        if self._metadata is None and idle and due:
            self._metadata, self._metadata_asked = producer.ask_for_metadata(), now
            self._metadata.add_done_callback(lambda _: self.looks.now())

    def _missing_reason(self, producer: Producer, topic: str) -> Reason:
        return _named(_TOPIC_NOT_AUTHORIZED if producer.may_not_see(topic) else _TOPIC_MISSING, topic)

    def _stall_reason(self, producer: Producer, stalled: dict[str, float]) -> Reason:
        for topic, since in sorted(stalled.items()):
            if leaderless := producer.leaderless(topic):
                reason = _named(_NO_LEADER, topic)
                return Reason(reason.code, f"{reason.detail}; partitions {leaderless}")
            if refusal := self._complaints.refusal(topic, since):
                return _named(refusal.errno, topic)
        silence = f"no answer from {self._servers} for more than {STALL_SECONDS:g} s"
        return self._explained(Reason("kafka_stalled", silence))

    def _explained(self, reason: Reason) -> Reason:
        """Why it can't connect, if that is so; or else the reason, with what aiokafka only logged."""
        return self._complaints.connection() or self._with_log(reason)

    def _with_log(self, reason: Reason) -> Reason:
        """The reason, with what aiokafka only logged."""
        said = self._complaints.latest()
        return Reason(reason.code, f"{reason.detail}; aiokafka says: {said}") if said else reason


def _named(code: int, topic: str) -> Reason:
    return kafka_failure(code, for_code(code).__name__, "", topic=topic).reason
