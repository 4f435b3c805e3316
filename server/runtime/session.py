"""The MQTT session of one mapping: connect, subscribe what is wanted, stay connected, come back.

The row of the session is written before the broker is asked for anything, so that after a crash no filter and no
session is forgotten (design.md, 2).
"""

from __future__ import annotations

import asyncio
import functools
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Protocol

import structlog

from server.core.backoff import Backoff
from server.core.lifecycle import Reason
from server.core.subscription import CopyFilter, Session, plan_subscriptions
from server.core.topics import any_overlap
from server.mqtt.connection import LEAVE_PINGRESP_SECONDS
from server.mqtt.negotiate import Negotiation
from server.mqtt.port import ConnectionEndedError, Ended, SessionRequest, SubscriptionRefusedError
from server.runtime.ending import end_session
from server.runtime.receivers import Discarding, Reading

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from server.core.connections import MqttConnection
    from server.core.mapping import Mapping as MappingSpec
    from server.core.subscription import Subscription, WireProtocol
    from server.mqtt.port import Connection, Connector, Granted, Receiver
    from server.runtime.counters import Tally
    from server.runtime.intake import Intake
    from server.runtime.ledger import Ledger

_log = structlog.get_logger()

SAME_MALFORMED_PACKETS = 5
# Half of all packet ids: Mosquitto 2.0.11 sends more than it may at QoS 2 and takes the next id without looking
# whether it is in use, so with all of them in flight it gives one id to two messages.
MOST_AT_QOS_2 = 32_767
STALL_SECONDS = 3.0
# So many connections in a row that the broker closes this soon and without a word look like a takeover.
SHORT_CONNECTIONS = 3
SHORT_CONNECTION_SECONDS = 30.0
_QUIET_SECONDS = 3.0
_QOS_2 = 2
_LEFT = Ended(Reason("mqtt_left", "left by this side"))


class SessionStoppedError(Exception):
    """Only an operator can mend this."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason.detail)
        self.reason = reason


class SessionEvents(Protocol):
    """Who hears about the session."""

    def mqtt_trouble(self, reason: Reason | None, *, unheard_seconds: float = 0.0) -> None:
        """Not subscribed, and why; None when it is. The broker may have been silent for a while before."""


@dataclass(frozen=True, slots=True)
class Broker:
    """The MQTT broker and how to connect to it."""

    connection: MqttConnection
    connectors: Mapping[WireProtocol, Connector]


@dataclass(slots=True)
class SessionMemory:
    """What a mapping's sessions are remembered by while the process lives, over pauses and changes.

    `unreleased` holds per client id the QoS 2 packet ids that were answered with PUBREC and not released.
    """

    unreleased: dict[str, set[int]] = field(default_factory=dict)
    negotiations: dict[str, Negotiation] = field(default_factory=dict)


class MqttSession:
    """Keeps one mapping's session."""

    def __init__(
        self,
        spec: MappingSpec,
        *,
        broker: Broker,
        ledger: Ledger,
        intake: Intake,
        tally: Tally,
        memory: SessionMemory,
        events: SessionEvents,
        random: Callable[[], float],
    ) -> None:
        self._spec = spec
        self._broker = broker
        self._ledger = ledger
        self._intake = intake
        self._tally = tally
        self._memory = memory
        self._events = events
        self._backoff = Backoff(random)
        self._malformed: tuple[bytes, int] = (b"", 0)
        self._short = 0
        self._ended_by = ""
        self._was_connected = False
        self.client_id = spec.client_id(broker.connection.client_id)
        self.connection: Connection | None = None
        self.granted: Granted | None = None
        self.granted_qos: dict[str, int] = {}

    @property
    def durable(self) -> bool:
        """Whether the broker keeps messages for us while we are away."""
        return bool(self.client_id)

    @property
    def warnings(self) -> list[str]:
        """What an operator should know although it works."""
        found = []
        granted = self.granted
        tls = self._broker.connection.tls
        if tls is not None and tls.insecure_skip_verify:
            found.append("mqtt.tls.insecure_skip_verify: the broker's certificate is not checked")
        if not self.durable:
            found.append("no client_id: the session is not durable, messages are lost while disconnected")
        if granted is None:
            return found
        if granted.protocol == "3.1.1" and self._spec.mqtt.qos == _QOS_2:
            found.append("QoS 2 is capped at 1 over MQTT 3.1.1: delivery stays at least once")
        if not granted.subscription_identifiers and any_overlap(self._spec.mqtt.filters):
            found.append("filters overlap and the broker has no subscription identifiers: duplicates are possible")
        lower = {name: qos for name, qos in self.granted_qos.items() if qos < self._qos(granted.protocol)}
        if lower:
            listed = ", ".join(f"{name!r}: {qos}" for name, qos in lower.items())
            found.append(f"the broker granted a lower QoS than asked for: {listed}")
        if self.durable and granted.session_expiry is not None and granted.session_expiry < self._expiry:
            found.append(
                f"the broker keeps the session for {granted.session_expiry} s instead of {self._expiry} s: "
                "a longer absence loses messages"
            )
        return found

    @property
    def _expiry(self) -> int:
        return self._broker.connection.session_expiry if self.durable else 0

    @property
    def _receive_maximum(self) -> int:
        wanted = self._spec.mqtt.receive_maximum
        return min(wanted, MOST_AT_QOS_2) if self._spec.mqtt.qos == _QOS_2 else wanted

    def _qos(self, protocol: WireProtocol) -> int:
        return min(self._spec.mqtt.qos, 1) if protocol == "3.1.1" else self._spec.mqtt.qos

    # --- the loop ---------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Stay connected until cancelled. The connection, if there is one, is left to the caller.

        Raises:
            SessionStoppedError: only an operator can mend it.
        """
        while True:
            began = asyncio.get_running_loop().time()
            try:
                await self._retire_former_sessions()
                ended = await self._connected_once()
            except ConnectionEndedError as error:
                ended = error.ended
            except SubscriptionRefusedError as error:
                await self.leave()
                ended = Ended(error.reason)
            # What is lost is decided by what was said, and by the packet ids; a suspicion only makes it wait.
            self._lost(ended)
            self._ended_by = ended.reason.code
            ended = self._suspected(ended, asyncio.get_running_loop().time() - began)
            at_once = self._negotiation(self.client_id).refused(ended)
            self._check_malformed(ended)
            self._events.mqtt_trouble(ended.reason, unheard_seconds=ended.unheard_seconds)
            if not at_once:
                await asyncio.sleep(self._backoff.after_takeover() if ended.takeover else self._backoff.next_delay())

    def _suspected(self, ended: Ended, seconds: float) -> Ended:
        """A takeover, if brokers that say nothing of it close again and again soon after connecting.

        Two clients with one id kick each other for ever, and Mosquitto 2.0 just closes the older connection.
        """
        self._short = self._short + 1 if ended.unexplained and seconds < SHORT_CONNECTION_SECONDS else 0
        if self._short < SHORT_CONNECTIONS:
            return ended
        return Ended(
            Reason(
                "mqtt_takeover",
                f"the broker closed {self._short} connections in a row within {SHORT_CONNECTION_SECONDS:g} s without a "
                f"word, so another client seems to use the client id {self.client_id!r}; give each an id of its own",
            ),
            takeover=True,
        )

    async def _connected_once(self) -> Ended:
        row = self._row(self.client_id)
        with self._told_if_slow():
            connection = await self._connect(row, self._receive_maximum)
            if self._was_connected:
                self._tally.mqtt_reconnects[self._ended_by] += 1
            self._was_connected = True
            await self._subscribe(connection, row)
        self._backoff.reset()
        self._events.mqtt_trouble(None)
        # Shielded: this task is cancelled to leave the connection, and what leaves it still asks whether it has ended.
        return await asyncio.shield(connection.ended)

    @contextmanager
    def _told_if_slow(self) -> Iterator[None]:
        """Give a reason if the broker is silent; while messages come, SUBACK may wait behind what it has queued."""
        loop = asyncio.get_running_loop()
        timer: asyncio.TimerHandle

        def judge(received_bytes: int) -> None:
            nonlocal timer
            if (come := self._tally.received_bytes) > received_bytes:
                timer = loop.call_later(STALL_SECONDS, judge, come)
                return
            silence = f"no answer from {self._broker.connection.address} for more than {STALL_SECONDS:g} s"
            self._events.mqtt_trouble(Reason("mqtt_stalled", silence))

        timer = loop.call_later(STALL_SECONDS, judge, self._tally.received_bytes)
        try:
            yield
        finally:
            timer.cancel()

    def _row(self, client_id: str) -> Session:
        return self._ledger.session(client_id) or Session(client_id, self._spec.name)

    def _negotiation(self, client_id: str) -> Negotiation:
        negotiation = self._memory.negotiations.get(client_id)
        if negotiation is None:
            row = self._ledger.session(client_id)
            worked = row.protocol if row is not None and row.established else None
            negotiation = Negotiation(self._broker.connection.protocol, worked_over=worked)
            self._memory.negotiations[client_id] = negotiation
        return negotiation

    async def _connect(self, row: Session, receive_maximum: int, *, reading: bool = True) -> Connection:
        """Connect the session of this row; the row is written first. Only when `reading` are its messages taken."""
        negotiation = self._negotiation(row.client_id)
        protocol = negotiation.choice
        if protocol == "3.1.1" and row.held_qos2 and row.established and not row.clean_start:
            negotiation.prefer_five()
            raise ConnectionEndedError(
                Ended(
                    Reason(
                        "mqtt_qos2_session",
                        f"the session {row.client_id!r} may hold QoS 2 messages, which can't be resumed over MQTT "
                        "3.1.1 without loss; let it drain over MQTT 5, or pause the mapping and call reset-session",
                    )
                )
            )
        if row.client_id and self._ledger.session(row.client_id) != row:
            await self._ledger.save(row)
        clean_start = row.clean_start or not row.client_id
        if protocol == "3.1.1" and row.clean_start and row.client_id:
            # A clean session ends with its connection there: end the old one first, then begin one that stays.
            await end_session(self._broker, row.client_id, protocol)
            clean_start = False
        request = SessionRequest(
            broker=self._broker.connection,
            client_id=row.client_id,
            clean_start=clean_start,
            session_expiry=self._expiry if row.client_id else 0,
            receive_maximum=receive_maximum,
            unreleased=self._memory.unreleased.setdefault(row.client_id, set()),
        )
        receiver: Receiver = Discarding(self._intake)
        if reading:
            begun = functools.partial(self._begun, row, request)
            receiver = Reading(self._intake, begun, durable=bool(row.client_id))
        connection = self.connection = await self._broker.connectors[protocol].connect(request, receiver)
        negotiation.accepted()
        return connection

    def _begun(self, row: Session, request: SessionRequest, connection: Connection) -> None:
        """The broker accepted: from now on messages may come, before anything is subscribed."""
        self.connection, self.granted = connection, connection.granted
        if row.established and not row.clean_start and not connection.granted.session_present and row.client_id:
            self._tally.sessions_lost += 1
            _log.warning("session_lost", mapping=self._spec.name, client_id=row.client_id)
        # In a new session identifiers begin anew: what the row knows of them must not judge its messages.
        self._intake.copies = self._copies(row) if connection.granted.session_present else CopyFilter(())
        self._intake.attach(connection, request)

    async def _subscribe(self, connection: Connection, row: Session) -> None:
        """Subscribe what is wanted and unsubscribe what is gone, if anything differs from what the session has."""
        granted = connection.granted
        plan = plan_subscriptions(
            row if granted.session_present else row.ended(),
            self._spec.mqtt.filters,
            qos=self._qos(granted.protocol),
            protocol=granted.protocol,
            identifiers=granted.subscription_identifiers,
        )
        if row.client_id and plan.during != row:
            await self._ledger.save(plan.during, began_afresh=row.clean_start)
        answers: dict[str, int] = {}
        for together in _in_turn(plan.subscribe):
            answers |= await connection.subscribe(together)
            self._intake.copies = self._copies(plan.reached(answers))
        if plan.unsubscribe:
            await connection.unsubscribe(plan.unsubscribe)
        reached = plan.reached(answers)
        if row.client_id and reached != plan.during:
            await self._ledger.save(reached)
        self.granted_qos = {
            each.topic_filter: each.granted for each in reached.subscriptions if each.granted is not None
        }

    def _copies(self, row: Session) -> CopyFilter:
        """Which copies of a message are extra; a filter that is going must not take another's only copy away."""
        filters = self._spec.mqtt.filters
        return CopyFilter([each for each in row.subscriptions if each.topic_filter in filters])

    def _lost(self, ended: Ended) -> None:
        self.connection = None
        self._intake.detach(takeover=ended.takeover)

    async def leave(self, patience: float = LEAVE_PINGRESP_SECONDS) -> None:
        """Leave the connection, if there is one, as design.md says: every acknowledgement arrives, nothing is lost."""
        if self.connection is not None:
            try:
                await self.connection.leave(patience)
            except BaseException:
                self.connection.abort()
                raise
            finally:
                self._lost(_LEFT)

    def _check_malformed(self, ended: Ended) -> None:
        if ended.malformed is None:
            self._malformed = (b"", 0)
            return
        sample, times = self._malformed
        times = times + 1 if sample == ended.malformed else 1
        self._malformed = (ended.malformed, times)
        if times >= SAME_MALFORMED_PACKETS:
            raise SessionStoppedError(
                Reason(
                    "mqtt_malformed_packet",
                    f"{ended.reason.detail}; the same packet came {times} times in a row, so the broker will not get "
                    "past it: remove it there, or reset the session",
                )
            )

    # --- a client id that changed -----------------------------------------------------------------------------------

    async def _retire_former_sessions(self) -> None:
        """Bring what the broker queued under former client ids to Kafka, and end those sessions (design.md, 2).

        The new session is subscribed first, so that nothing falls between the two; what is published in between comes
        from both. Then all former ones are unsubscribed before the first is drained, which takes a while.
        """
        former = [row for row in self._ledger.of_mapping(self._spec.name) if row.client_id != self.client_id]
        if not former:
            return
        listed = ", ".join(repr(row.client_id) for row in former)
        self._events.mqtt_trouble(
            Reason("mqtt_former_session", f"bringing in what is queued under the former client id {listed}")
        )
        if self.client_id:
            row = self._row(self.client_id)
            connection = await self._connect(row, 1, reading=False)
            await self._subscribe(connection, row)
            await self.leave()
        for row in former[1:]:
            await self._unsubscribe_all(await self._connect(row, 1, reading=False), row)
            await self.leave()
        for row in former:
            await self._drain_former(self._row(row.client_id))
            await end_session(self._broker, row.client_id, self._negotiation(row.client_id).choice)
            await self._ledger.forget(row.client_id)
            self._memory.unreleased.pop(row.client_id, None)
            self._memory.negotiations.pop(row.client_id, None)
            _log.info("former_session_ended", mapping=self._spec.name, client_id=row.client_id)

    async def _unsubscribe_all(self, connection: Connection, row: Session) -> None:
        if row.subscriptions:
            await connection.unsubscribe([each.topic_filter for each in row.subscriptions])
            await self._ledger.save(replace(row, subscriptions=()))

    async def _drain_former(self, row: Session) -> None:
        connection = await self._connect(row, self._receive_maximum)
        await self._unsubscribe_all(connection, row)
        reads = -1
        while reads != self._intake.reads or not self._intake.window.is_empty or connection.withheld:
            reads = self._intake.reads
            await asyncio.wait([connection.ended], timeout=_QUIET_SECONDS)
            if connection.ended.done():
                raise ConnectionEndedError(connection.ended.result())
        await self.leave()


def _in_turn(subscriptions: Sequence[Subscription]) -> list[Sequence[Subscription]]:
    """Those to subscribe together, one after the other.

    Filters with identifiers overlap: the retained messages of one must find the others granted that were before it, or
    a message that matches several would come several times.
    """
    if any(subscription.identifier is not None for subscription in subscriptions):
        return [(subscription,) for subscription in subscriptions]
    return [subscriptions] if subscriptions else []
