"""An MQTT broker that does only what a test tells it, behind the face of `server.mqtt.port.Connector`.

It keeps sessions as a broker does, and notes what it was asked in `asked`, next to what was saved (`note`), so that a
test can tell which came first. Every await of a connection really yields.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, get_args

from server.core.connections import MqttConnection
from server.core.lifecycle import Reason
from server.core.numbering import ENOUGH
from server.core.subscription import WireProtocol
from server.mqtt.port import ConnectionEndedError, Ended, Granted, SubscriptionRefusedError
from server.runtime.session import Broker

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from server.core.acks import Fingerprint
    from server.core.subscription import Session, Subscription
    from server.mqtt.port import Message, Receiver, SessionRequest
    from server.store.store import Store
    from server.store.stored import SessionChange

LOST = Ended(Reason("mqtt_connection_lost", "the broker closed the connection"))
AWAY = Ended(Reason("mqtt_unreachable", "connection refused"))
TAKEOVER = Ended(Reason("mqtt_takeover", "another client uses the client id"), takeover=True)
SILENT = Ended(Reason("mqtt_closed", "closed before a byte"), silent=True)
WRONG_VERSION = Ended(Reason("mqtt_protocol_version", "the broker does not speak MQTT 5"), version_refused=True)


@dataclass(frozen=True, slots=True)
class FakeMessage:
    """A message as an adapter hands it over."""

    topic: str = "t"
    payload: bytes = b"p"
    qos: int = 1
    packet_id: int | None = 1
    duplicate: bool = False
    subscription_ids: list[int] = field(default_factory=list)


@dataclass
class FakeMqtt:
    """The broker."""

    away: Ended | None = None
    refusals: deque[Ended] = field(default_factory=deque)  # of the next connections
    refused_filters: dict[str, int] = field(default_factory=dict)
    granted_qos: int = 2
    identifiers: bool = True
    expiry: int | None = None  # None grants what was asked for
    sessions: dict[str, set[str]] = field(default_factory=dict)
    connections: list[FakeConnection] = field(default_factory=list)
    asked: list[tuple[Any, ...]] = field(default_factory=list)
    queued: dict[str, list[FakeMessage]] = field(default_factory=dict)
    hang_in: str = ""  # this call never returns

    def broker(self, **connection: Any) -> Broker:
        """What the session is told about it."""
        spec = MqttConnection.model_validate({"host": "mqtt", "client_id": "base", **connection})
        return Broker(spec, {protocol: FakeConnector(self, protocol) for protocol in get_args(WireProtocol)})

    @property
    def open(self) -> list[FakeConnection]:
        return [connection for connection in self.connections if connection.is_open]

    def asks(self, *kinds: str) -> list[tuple[Any, ...]]:
        """What it was asked, of these kinds."""
        return [asked for asked in self.asked if asked[0] in kinds]

    async def turn(self, call: str) -> None:
        await asyncio.sleep(0)
        if call == self.hang_in:
            await asyncio.Event().wait()


@dataclass
class FakeConnector:
    """Connects over one protocol."""

    mqtt: FakeMqtt
    protocol: Literal["5", "3.1.1"]

    async def connect(self, request: SessionRequest, receiver: Receiver) -> FakeConnection:
        mqtt = self.mqtt
        mqtt.asked.append(("connect", request.client_id, self.protocol, request.clean_start, request.session_expiry))
        await mqtt.turn("connect")
        if mqtt.refusals:
            raise ConnectionEndedError(mqtt.refusals.popleft())
        if mqtt.away is not None:
            raise ConnectionEndedError(mqtt.away)
        for other in mqtt.open:
            assert other.request.client_id != request.client_id or not request.client_id, "two connections of a session"
        present = request.client_id in mqtt.sessions and not request.clean_start
        if not present:
            mqtt.sessions.pop(request.client_id, None)
            mqtt.queued.pop(request.client_id, None)
        if request.client_id and request.session_expiry:
            mqtt.sessions.setdefault(request.client_id, set())
        connection = FakeConnection(mqtt, self.protocol, request, receiver, present)
        mqtt.connections.append(connection)
        receiver.connected(connection)
        queued = mqtt.queued.pop(request.client_id, [])
        if queued:
            connection.hand_over(*queued)
        try:
            await mqtt.turn("connected")
        except asyncio.CancelledError:
            connection.end(LOST)
            raise
        return connection


class FakeConnection:
    """One connection, as its client sees it."""

    def __init__(
        self, mqtt: FakeMqtt, protocol: WireProtocol, request: SessionRequest, receiver: Receiver, present: bool
    ) -> None:
        expiry = request.session_expiry if mqtt.expiry is None else mqtt.expiry
        self.granted = Granted(
            protocol,
            present,
            request.client_id or "assigned",
            expiry if protocol == "5" else None,
            mqtt.identifiers and protocol == "5",
        )
        self.mqtt = mqtt
        self.request = request
        self.receiver = receiver
        self.ended: asyncio.Future[Ended] = asyncio.get_running_loop().create_future()
        self.acknowledged: list[Message] = []
        self.reading = True
        self.left = False
        self.withheld: list[tuple[int, Fingerprint]] = []

    @property
    def is_open(self) -> bool:
        return not self.ended.done()

    def end(self, ended: Ended = LOST) -> None:
        """The connection is gone."""
        if self.is_open:
            self.ended.set_result(ended)

    def hand_over(self, *messages: FakeMessage) -> None:
        """The broker sends these."""
        assert self.is_open
        self.receiver.received(messages, sum(len(message.payload) + 400 for message in messages))
        self.receiver.all_received()

    def count_up(self) -> int:
        """Show that packet ids are counted up, if these are acknowledged at once; returns the last one used."""
        for packet_id in range(1, ENOUGH + 3):
            self.hand_over(FakeMessage(payload=b"count %d" % packet_id, packet_id=packet_id))
        return ENOUGH + 2

    def acknowledge(self, messages: Sequence[Message]) -> None:
        assert self.is_open
        self.acknowledged += messages

    def when_processed(self, call: Callable[[], None]) -> None:
        call()

    def rest(self, seconds: float, then: Callable[[], None]) -> None:
        if self.is_open:
            asyncio.get_running_loop().call_later(seconds, lambda: then() if self.is_open else None)

    def pause_reading(self) -> None:
        assert self.reading
        self.reading = False

    def resume_reading(self) -> None:
        assert not self.reading
        self.reading = True

    async def _call(self, name: str) -> None:
        await self.mqtt.turn(name)
        if not self.is_open:
            raise ConnectionEndedError(self.ended.result())

    async def subscribe(self, subscriptions: Sequence[Subscription]) -> dict[str, int]:
        mqtt = self.mqtt
        filters = tuple(each.topic_filter for each in subscriptions)
        mqtt.asked.append(("subscribe", self.request.client_id, filters))
        await self._call("subscribe")
        refused = {name: code for name, code in mqtt.refused_filters.items() if name in filters}
        if refused:
            raise SubscriptionRefusedError(Reason("mqtt_subscription_refused", f"refused: {sorted(refused)}"))
        mqtt.sessions.get(self.request.client_id, set()).update(filters)
        return {each.topic_filter: min(each.qos, mqtt.granted_qos) for each in subscriptions}

    async def unsubscribe(self, filters: Sequence[str]) -> None:
        self.mqtt.asked.append(("unsubscribe", self.request.client_id, tuple(filters)))
        await self._call("unsubscribe")
        self.mqtt.sessions.get(self.request.client_id, set()).difference_update(filters)

    async def leave(self, patience: float = 2.0) -> None:
        del patience
        self.mqtt.asked.append(("leave", self.request.client_id))
        self.left = True
        try:
            if self.is_open:
                await self.mqtt.turn("leave")
        finally:
            self.end()
            if not self.request.session_expiry:
                self.mqtt.sessions.pop(self.request.client_id, None)

    def abort(self) -> None:
        self.end()


class NotingStore:
    """Session rows, and in `note` when each was written."""

    def __init__(self, note: Callable[[tuple[Any, ...]], None], *rows: Session) -> None:
        self.rows = {row.client_id: row for row in rows}
        self._note = note

    async def sessions(self) -> list[Session]:
        await asyncio.sleep(0)
        return list(self.rows.values())

    async def write_sessions(self, changes: Sequence[SessionChange]) -> list[Session | None]:
        for change in changes:
            row = change.session
            assert change.client_id
            if row is None:
                self._note(("forget", change.client_id))
                self.rows.pop(change.client_id, None)
            else:
                self._note(("save", row.client_id, tuple(each.topic_filter for each in row.subscriptions)))
                self.rows[row.client_id] = row
        await asyncio.sleep(0)
        return [change.session for change in changes]

    def as_store(self) -> Store:
        """It has what a ledger needs of a Store."""
        store: Any = self
        checked: Store = store
        return checked
