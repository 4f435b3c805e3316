"""One mapping's pipeline: its session, its window, its sink, and the state an operator sees.

A Forwarder lives as long as its mapping, over pauses and changes; each `run` is one life of the pipeline with one
spec. Every task it starts is awaited before `run` returns, and a crash of one of them is a reason, never silence.
"""

from __future__ import annotations

import asyncio
import math
import random
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import structlog

from server.core.backoff import Backoff
from server.core.lifecycle import Reason, Signal, State, next_state
from server.kafka.sink import Sink, SinkStoppedError
from server.mqtt.connection import LEAVE_PINGRESP_SECONDS
from server.runtime.counters import Tally
from server.runtime.intake import Intake
from server.runtime.session import MqttSession, SessionMemory, SessionStoppedError
from server.runtime.status import Counters, InFlight, LastError, MappingStatus, MqttStatus, Rates
from server.tasks import ended, first_of, to_the_end

if TYPE_CHECKING:
    from collections.abc import Coroutine, Sequence

    from server.core.mapping import Mapping
    from server.kafka.producer import Cluster
    from server.kafka.sink import Unconfirmed
    from server.runtime.ledger import Ledger
    from server.runtime.session import Broker
    from server.store.stored import StoredMapping

_log = structlog.get_logger()

# Together with ending the producer (4 s at most) and leaving (3 s) within the 15 s that DRAINING may last.
DRAIN_SECONDS = 8.0
# A reason whose details change all the time (addresses, what aiokafka says just now) is logged once in this time.
_SAME_REASON_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Trouble:
    """When something went wrong, and what."""

    at: datetime
    reason: Reason


class Forwarder:
    """One mapping, observed."""

    def __init__(self, name: str, broker: Broker, cluster: Cluster, ledger: Ledger) -> None:
        self.name = name
        self.tally = Tally()
        self.state = State.PAUSED
        self.since = datetime.now(UTC)
        self.reason: Reason | None = None
        self.last_error: Trouble | None = None
        self.generation = 0
        self.spec: Mapping | None = None  # what it runs, or ran last
        self.intake = Intake(self.tally, rests=cluster.rests)
        self._broker = broker
        self._cluster = cluster
        self._ledger = ledger
        self._memory = SessionMemory()
        self._session: MqttSession | None = None
        self._stop = asyncio.Event()
        self._mqtt_ready = False
        self._kafka_ready = False
        self._mqtt_reason: Reason | None = None
        self._kafka_reason: Reason | None = None
        self._not_running_since: float | None = -math.inf
        self._logged: dict[str, float] = {}  # reasons in this state, and when

    # --- life -------------------------------------------------------------------------------------------------------

    def run(self, spec: Mapping, generation: int) -> Coroutine[Any, Any, None]:
        """Forward with this spec until `stop` or until it FAILED. Always ends with nothing of it running.

        What is asked for after this call counts, though nothing of it has run yet: a task makes its first step later.
        """
        self._stop.clear()
        self.spec, self.generation = spec, generation
        return self._run(spec)

    async def _run(self, spec: Mapping) -> None:
        self._not_running_since = time.monotonic()
        self._signal(Signal.START)
        backoff = Backoff(random.random)
        while True:
            try:
                await self._pipeline(spec)
            except (SinkStoppedError, SessionStoppedError) as error:
                self._end_with(error.reason)
                return
            except Exception as error:
                _log.exception("forwarder_crashed", mapping=self.name)
                task = asyncio.current_task()
                if task is not None and task.cancelling():
                    raise  # what broke on the way out must not undo the cancellation
                reason = Reason("internal_error", f"{type(error).__name__}: {error}")
                if self._stop.is_set() or self.state is State.DRAINING:
                    self._end_with(reason)
                    return
                self._signal(Signal.TROUBLE, reason)
            else:
                self._signal(Signal.STOPPED)
                return
            await first_of(self._stop.wait(), asyncio.sleep(backoff.next_delay()))

    def _end_with(self, reason: Reason) -> None:
        """FAILED; or, if it was to stop anyway, PAUSED with the reason kept."""
        if self._stop.is_set() or self.state is State.DRAINING:
            if self.state is not State.DRAINING:
                self._signal(Signal.STOP)
            self.last_error = Trouble(datetime.now(UTC), reason)
            self._signal(Signal.STOPPED)
        else:
            self._signal(Signal.FAIL, reason)

    def stop(self) -> None:
        """Ask `run` to drain and end."""
        self._stop.set()

    def rest(self) -> None:
        """It FAILED, and is not wanted running any more."""
        self._signal(Signal.STOPPED)

    def broke(self, error: BaseException) -> None:
        """`run` itself broke, which no transition foresees: FAILED, and the reason says so."""
        self.state, self.since = State.FAILED, datetime.now(UTC)
        self.reason = Reason("internal_error", f"{type(error).__name__}: {error}")
        self.last_error = Trouble(self.since, self.reason)

    def forget_session(self) -> None:
        """The session is reset: nothing of the past comes again."""
        self.intake.session_lost()
        self._memory = SessionMemory()

    async def _pipeline(self, spec: Mapping) -> None:
        self._mqtt_ready = self._kafka_ready = False
        self._mqtt_reason = self._kafka_reason = None
        sink = Sink(self._cluster, spec, self.intake.window, outcomes=self, random=random.random)
        session = self._session = MqttSession(
            spec,
            broker=self._broker,
            ledger=self._ledger,
            intake=self.intake,
            tally=self.tally,
            memory=self._memory,
            events=self,
            random=random.random,
        )
        self.intake.into(sink)
        writing = asyncio.create_task(sink.run(), name=f"sink of {self.name}")
        reading = asyncio.create_task(session.run(), name=f"session of {self.name}")
        stopping = asyncio.create_task(self._stop.wait(), name=f"stop of {self.name}")
        try:
            await asyncio.wait([writing, reading, stopping], return_when=asyncio.FIRST_COMPLETED)
            if not writing.done() and not reading.done():
                self._signal(Signal.STOP)
                await self._drain(sink, writing, reading)
        finally:
            await to_the_end(self._tear_down(sink, session, writing, reading, stopping))
        for task in (writing, reading):
            if not task.cancelled() and (error := task.exception()) is not None:
                raise error

    async def _tear_down(self, sink: Sink, session: MqttSession, *tasks: asyncio.Task[Any]) -> None:
        """End everything: first the producer, so that nothing is written once the mapping is not running any more."""
        self.intake.close()
        try:
            await ended(*tasks)
        finally:
            unconfirmed = sink.unconfirmed_messages()
            self.intake.acknowledge_confirmed(unconfirmed)
            try:
                await session.leave()
            finally:
                self._give_up(unconfirmed)

    async def _drain(self, sink: Sink, writing: asyncio.Task[None], reading: asyncio.Task[None]) -> None:
        """Bring what was received to Kafka and its acknowledgements to the broker, within the time there is."""
        deadline = time.monotonic() + DRAIN_SECONDS
        self.intake.close()
        await ended(reading)
        drained = asyncio.create_task(sink.drained(), name=f"drain of {self.name}")
        try:
            await asyncio.wait([drained, writing], timeout=DRAIN_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        finally:
            await ended(drained)
        if not sink.unconfirmed and self._session is not None:
            self.intake.acknowledge_due()
            # A broker that is behind gets all the time there is: what it has not read would come again.
            await self._session.leave(max(LEAVE_PINGRESP_SECONDS, deadline - time.monotonic()))

    def _give_up(self, unconfirmed: Sequence[Unconfirmed]) -> None:
        """Account for what Kafka had not confirmed: it comes again, or it is lost and counted so."""
        lost = self.intake.give_up(unconfirmed)
        if handed_back := len(unconfirmed) - lost:
            _log.info("messages_handed_back", mapping=self.name, messages=handed_back)
        if lost:
            _log.warning("messages_dropped", mapping=self.name, reason="shutdown", messages=lost)

    # --- what session and sink report -------------------------------------------------------------------------------

    def delivered(self, messages: int, size: int) -> None:
        """Kafka confirmed these, in batches of `size` bytes."""
        tally = self.tally
        tally.delivered += messages
        tally.delivered_rate.note(time.monotonic(), messages)
        tally.delivered_bytes += size
        tally.progressed_at = time.time()

    def waited(self, seconds: float, messages: int) -> None:
        """So many messages came so long before Kafka confirmed them."""
        self.tally.latency.note(seconds, messages)

    def dead_lettered(self, messages: int) -> None:
        """Kafka confirmed these as dead letters."""
        self.tally.dead_lettered += messages
        self.tally.progressed_at = time.time()

    def dropped(self, reason: str, messages: int) -> None:
        """These were dropped by rule."""
        self.tally.dropped[reason] += messages

    def kafka_reconnected(self, reason: str) -> None:
        """A producer follows one that ended for this reason."""
        self.tally.kafka_reconnects[reason] += 1

    def progressed(self) -> None:
        """Something may be due."""
        self.intake.progressed()

    def kafka_trouble(self, reason: Reason | None) -> None:
        """Kafka takes no records, and why; None when it does."""
        self._kafka_ready, self._kafka_reason = reason is None, reason
        self._observe(reason)

    def mqtt_trouble(self, reason: Reason | None, *, unheard_seconds: float = 0.0) -> None:
        """Not subscribed, and why; None when it is. The broker may have been silent for a while before."""
        self._mqtt_ready, self._mqtt_reason = reason is None, reason
        self._observe(reason)
        if unheard_seconds and self._not_running_since is not None:
            # Keep alive takes up to 25 s to notice; the probe must not begin to count its own 25 s only then.
            self._not_running_since = min(self._not_running_since, time.monotonic() - unheard_seconds)

    def _observe(self, news: Reason | None) -> None:
        if self.state is State.DRAINING:
            self.reason = self._trouble  # what keeps it from ending
        if self.state not in {State.STARTING, State.RUNNING, State.RETRYING}:
            return
        if news is not None and (self.last_error is None or self.last_error.reason != news):
            self.last_error = Trouble(datetime.now(UTC), news)
        reason = self._trouble
        if reason is not None:
            if self.state is not State.RETRYING or reason != self.reason:
                self._signal(Signal.TROUBLE, reason)
        elif self._mqtt_ready and self._kafka_ready and self.state is not State.RUNNING:
            self._signal(Signal.READY)

    @property
    def _trouble(self) -> Reason | None:
        return _together(self._kafka_reason, self._mqtt_reason)

    def _signal(self, signal: Signal, reason: Reason | None = None) -> None:
        before = self.state
        self.state = next_state(before, signal)
        self.reason = self._trouble if self.state is State.DRAINING else reason
        if self.state is not before:
            self.since = datetime.now(UTC)
            self._logged.clear()
        if self.state is State.RUNNING:
            self._not_running_since = None
        elif before is State.RUNNING:
            self._not_running_since = time.monotonic()
        if reason is not None:
            self.last_error = Trouble(datetime.now(UTC), reason)
        self._log(reason)

    def _log(self, reason: Reason | None) -> None:
        now, code = time.monotonic(), reason.code if reason else ""
        if now - self._logged.get(code, -math.inf) < _SAME_REASON_SECONDS:
            return
        self._logged[code] = now
        log = {State.RETRYING: _log.warning, State.FAILED: _log.error}.get(self.state, _log.info)
        detail = {"reason": reason.code, "detail": reason.detail} if reason else {}
        log("mapping_" + self.state.value, mapping=self.name, **detail)

    # --- what others ask --------------------------------------------------------------------------------------------

    def stuck_for(self, now: float) -> tuple[float, str]:
        """How long nothing has moved although it is wanted to (seconds), and why; `now` is monotonic."""
        oldest = self.intake.window.oldest_pending
        if self._not_running_since is None:
            return (0.0, "") if oldest is None else (now - oldest, "the oldest message waits for Kafka")
        why = f"{self.state.value}: {self.reason.detail}" if self.reason else self.state.value
        # It may have run for a moment meanwhile: a new producer delivers all but what waits for a leader.
        since = self._not_running_since if oldest is None else min(oldest, self._not_running_since)
        return now - since, why

    @property
    def connected(self) -> bool:
        """Whether the MQTT connection is there."""
        connection = self._session.connection if self._session else None
        return connection is not None and connection.is_open

    def _owed_warnings(self) -> list[str]:
        owed = self.intake.owed
        if not owed:
            return []
        return [f"{owed} messages were received before it stopped and are not in Kafka: the broker sends them again"]

    def status(self, stored: StoredMapping, base_client_id: str) -> MappingStatus:
        """The status of this mapping."""
        session, tally = self._session, self.tally
        granted = session.granted if session else None
        client_id = stored.spec.client_id(base_client_id)
        now = time.monotonic()
        last = self.last_error
        at = self.intake.last_message_at
        return MappingStatus(
            name=self.name,
            state=self.state,
            since=self.since,
            reason=f"{self.reason.code}: {self.reason.detail}" if self.reason else None,
            desired="paused" if stored.spec.paused else "running",
            # What is observed: a client sees by it when its change has taken effect.
            generation=stored.generation if self.state is State.PAUSED else self.generation,
            mqtt=MqttStatus(
                connected=self.connected,
                session_present=granted.session_present if granted else None,
                protocol=granted.protocol if granted else None,
                client_id=granted.client_id if granted and not client_id else client_id,
                durable=bool(client_id),
                granted_qos=session.granted_qos if session else {},
                session_expiry=granted.session_expiry if granted else None,
            ),
            in_flight=InFlight(messages=self.intake.in_flight, bytes=self.intake.held),
            counters=Counters(
                received=tally.received,
                delivered=tally.delivered,
                deduplicated=tally.deduplicated,
                dead_lettered=tally.dead_lettered,
                dropped=dict(tally.dropped),
                reconnects=tally.mqtt_reconnects.total(),
                sessions_lost=tally.sessions_lost,
            ),
            rates=Rates(
                received_per_second=tally.received_rate.per_second(now),
                delivered_per_second=tally.delivered_rate.per_second(now),
            ),
            last_message_at=datetime.fromtimestamp(at, UTC) if at is not None else None,
            last_error=LastError(at=last.at, reason=last.reason.code, detail=last.reason.detail) if last else None,
            warnings=[*self._owed_warnings(), *(session.warnings if session else [])],
        )


def _together(first: Reason | None, second: Reason | None) -> Reason | None:
    """Both reasons in one, so that mending the first is no surprise."""
    if first is None or second is None:
        return first or second
    return Reason(first.code, f"{first.detail}; besides, {second.code}: {second.detail}")
