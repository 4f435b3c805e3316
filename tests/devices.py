"""What sits on the other side of the MQTT broker: devices that publish, and clients that look into sessions.

Everything speaks MQTT 5 through the mqtt5 codec, independent of the service's own MQTT code.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, cast

import mqtt5

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Sequence

CONNECT_TIMEOUT = 10.0
KEEP_ALIVE = 60
LONG_SESSION = 24 * 3600
MAX_PACKET_ID = 65_535
# Enough to keep the broker busy, few enough for brokers that keep in-flight messages in a list.
WINDOW = 1_000

Message = tuple[str, bytes]


class Connection(asyncio.Protocol):
    """One MQTT 5 connection: packets out, packets in, and the acknowledgements a publisher waits for."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.connack: asyncio.Future[mqtt5.ConnAckPacket] = loop.create_future()
        self.closed: asyncio.Future[None] = loop.create_future()
        self.suback: asyncio.Future[mqtt5.SubAckPacket] = loop.create_future()
        self.refused: list[str] = []
        self.messages: list[mqtt5.PublishPacket] = []
        self.auto_ack = True
        self.reason = "the broker closed the connection"
        self._transport: asyncio.Transport | None = None
        self._buffer = bytearray()
        self._in_flight: dict[int, int] = {}  # packet id -> index of the message
        self._ids = itertools.cycle(range(1, MAX_PACKET_ID + 1))
        self.acknowledged: list[int] = []
        self._changed = asyncio.Event()

    @property
    def in_flight(self) -> int:
        return len(self._in_flight)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is none by class

    def connection_lost(self, exc: Exception | None) -> None:
        if exc is not None:
            self.reason = f"{self.reason}: {exc}"
        for future in (self.connack, self.suback):
            if not future.done():
                future.set_exception(ConnectionError(self.reason))
                future.exception()  # somebody may not be waiting for it, which is no fault
        self.closed.set_result(None)
        self._changed.set()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        used = 0
        with memoryview(self._buffer) as view:
            while True:
                try:
                    packet, size = mqtt5.read(view[used:])
                except IndexError:
                    break
                used += size
                self._handle(packet)
        del self._buffer[:used]
        self._changed.set()

    def write(self, data: bytes) -> None:
        if self._transport is None or self._transport.is_closing():
            raise ConnectionError(self.reason)
        self._transport.write(data)

    def publish(self, index: int, topic: str, payload: bytes, *, qos: int, retain: bool = False) -> bytes:
        """Register a message and return its bytes; `acknowledged` gets `index` when the broker has it."""
        if qos == 0:
            self.acknowledged.append(index)
            return mqtt5.PublishPacket(topic, payload, retain=retain).write()
        packet_id = next(self._ids)
        while packet_id in self._in_flight:
            packet_id = next(self._ids)
        self._in_flight[packet_id] = index
        return mqtt5.PublishPacket(topic, payload, qos=mqtt5.QoS(qos), retain=retain, packet_id=packet_id).write()

    async def changed(self) -> None:
        """Wait until something arrived since the last call, or the connection ended."""
        await self._changed.wait()
        self._changed.clear()

    async def flushed(self) -> None:
        """Wait until everything in flight is acknowledged; raises ConnectionError if that can't happen any more."""
        while self._in_flight:
            if self.closed.done():
                raise ConnectionError(self.reason)
            await self.changed()

    async def disconnect(self) -> None:
        """Say DISCONNECT and wait for the broker to close."""
        if not self.closed.done():
            self.write(mqtt5.DisconnectPacket().write())
            try:
                async with asyncio.timeout(2):
                    await asyncio.shield(self.closed)
            except TimeoutError:
                self.reason = "the broker did not close after DISCONNECT"
        self.abort()

    def abort(self) -> None:
        """Close the socket without a word."""
        if self._transport is not None:
            self._transport.abort()

    def _handle(self, packet: Any) -> None:
        match packet:
            case mqtt5.PubAckPacket() | mqtt5.PubCompPacket():
                self._acknowledge(packet)
            case mqtt5.PubRecPacket():
                if _is_error(packet.reason_code):
                    self._acknowledge(packet)
                else:
                    self.write(mqtt5.PubRelPacket(packet.packet_id).write())
            case mqtt5.PublishPacket():
                self._receive(packet)
            case mqtt5.PubRelPacket():
                self.write(mqtt5.PubCompPacket(packet.packet_id).write())
            case mqtt5.ConnAckPacket():
                self.connack.set_result(packet)
            case mqtt5.SubAckPacket():
                self.suback.set_result(packet)
            case mqtt5.DisconnectPacket():
                self.reason = f"the broker said DISCONNECT: {packet.reason_code}"
            case mqtt5.PingRespPacket():
                pass
            case _:
                self.reason = f"unexpected {packet!r}"
                self.abort()

    def _acknowledge(self, packet: mqtt5.PubAckPacket | mqtt5.PubCompPacket | mqtt5.PubRecPacket) -> None:
        index = self._in_flight.pop(packet.packet_id)
        # 0x10, no matching subscribers, is a success: the broker took responsibility and had nothing to do.
        if _is_error(packet.reason_code):
            self.refused.append(f"message {index}: {packet.reason_code}")
        else:
            self.acknowledged.append(index)

    def _receive(self, packet: mqtt5.PublishPacket) -> None:
        self.messages.append(packet)
        if not self.auto_ack or packet.packet_id is None:
            return
        if packet.qos == mqtt5.QoS.EXACTLY_ONCE:
            self.write(mqtt5.PubRecPacket(packet.packet_id).write())
        else:
            self.write(mqtt5.PubAckPacket(packet.packet_id).write())


@asynccontextmanager
async def connected(
    host: str, port: int, client_id: str = "", *, auto_ack: bool = True, **options: Any
) -> AsyncIterator[Connection]:
    """Open a connection; `options` are those of mqtt5.ConnectPacket. A refusal raises ConnectionError.

    Messages of a resumed session may come right behind CONNACK, so whether to acknowledge is said here.
    """
    connection: Connection | None = None
    options = {"clean_start": True, "keep_alive": KEEP_ALIVE, "receive_max": MAX_PACKET_ID - 1, **options}
    try:
        async with asyncio.timeout(CONNECT_TIMEOUT):
            _, connection = await asyncio.get_running_loop().create_connection(Connection, host, port)
            connection.auto_ack = auto_ack
            connection.write(mqtt5.ConnectPacket(client_id, **options).write())
            connack = await connection.connack
        if connack.reason_code != mqtt5.ConnAckReasonCode.SUCCESS:
            raise ConnectionError(f"CONNACK {connack.reason_code}")
        yield connection
        await connection.disconnect()
    finally:
        if connection is not None:
            connection.abort()
            await connection.closed


async def publish(
    host: str,
    port: int,
    messages: Iterable[Message],
    qos: int = 1,
    *,
    retain: bool = False,
    client_id: str = "",
    window: int = WINDOW,
    timeout: float = 120.0,
    **options: Any,
) -> int:
    """Publish as fast as the broker takes it, wait until it has confirmed every message, return how many.

    One connection, in order, at most `window` messages in flight. A lost connection is a ConnectionError.
    """
    count = 0
    async with asyncio.timeout(timeout), connected(host, port, client_id, **options) as connection:
        connack = connection.connack.result()
        window = min(window, connack.receive_max)
        numbered = enumerate(messages)
        while True:
            chunk = list(itertools.islice(numbered, window - connection.in_flight))
            if chunk:
                count += len(chunk)
                connection.write(
                    b"".join([connection.publish(i, topic, body, qos=qos, retain=retain) for i, (topic, body) in chunk])
                )
            elif connection.in_flight < window:
                break
            if qos == 0:
                await asyncio.sleep(0)  # let the loop read and write
                continue
            # Refill by halves: a write per acknowledgement would be a packet on the wire per message.
            while connection.in_flight > window // 2:
                if connection.closed.done():
                    raise ConnectionError(connection.reason)
                await connection.changed()
        await connection.flushed()
    if connection.refused:
        raise ConnectionError(f"{len(connection.refused)} messages were refused, first: {connection.refused[0]}")
    return count


class Device:
    """A publisher that lives through broker outages: it reconnects and sends again what was not confirmed.

    `accepted` counts confirmed messages. Used as a context manager it connects at once.
    """

    def __init__(self, host: str, port: int, client_id: str = "", *, qos: int = 1, **options: Any) -> None:
        self._address = host, port, client_id
        self._qos = qos
        self._options = options
        self.accepted = 0

    async def send(
        self, messages: Sequence[Message], *, per_second: float | None = None, timeout: float = 60.0
    ) -> None:
        """Publish the messages in order, paced if asked, until the broker has confirmed every one.

        After a lost connection it goes on with the oldest unconfirmed message, so the broker may get some twice.
        """
        pending: deque[tuple[int, Message]] = deque(enumerate(messages))
        loop = asyncio.get_running_loop()
        started = loop.time()
        async with asyncio.timeout(timeout):
            while pending:
                try:
                    await self._send_on_one_connection(pending, started, per_second)
                except (ConnectionError, OSError, TimeoutError):
                    await asyncio.sleep(0.1)

    async def _send_on_one_connection(
        self, pending: deque[tuple[int, Message]], started: float, per_second: float | None
    ) -> None:
        host, port, client_id = self._address
        loop = asyncio.get_running_loop()
        confirmed: set[int] = set()
        try:
            async with connected(host, port, client_id, **self._options) as connection:
                try:
                    for index, (topic, payload) in list(pending):
                        if per_second is not None:
                            await asyncio.sleep(max(0.0, started + index / per_second - loop.time()))
                        while connection.in_flight >= min(WINDOW, connection.connack.result().receive_max):
                            if connection.closed.done():
                                raise ConnectionError(connection.reason)
                            await connection.changed()
                        connection.write(connection.publish(index, topic, payload, qos=self._qos))
                    await connection.flushed()
                finally:
                    confirmed.update(connection.acknowledged)
        finally:
            kept = [item for item in pending if item[0] not in confirmed]
            self.accepted += len(pending) - len(kept)
            pending.clear()
            pending.extend(kept)


class Subscriber:
    """A client that subscribes and collects what comes: `async with subscriber(...) as s: await s.wait(10)`."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    @property
    def messages(self) -> list[mqtt5.PublishPacket]:
        return self._connection.messages

    async def wait(self, count: int, *, timeout: float = 30.0) -> list[mqtt5.PublishPacket]:
        """Wait until `count` messages have arrived in all."""
        try:
            async with asyncio.timeout(timeout):
                while len(self.messages) < count:
                    if self._connection.closed.done():
                        raise ConnectionError(self._connection.reason)
                    await self._connection.changed()
        except TimeoutError:
            raise AssertionError(f"{len(self.messages)} of {count} messages after {timeout:g} s") from None
        return self.messages


@asynccontextmanager
async def subscriber(
    host: str, port: int, pattern: str, *, qos: int = 1, client_id: str = "", auto_ack: bool = True, **options: Any
) -> AsyncIterator[Subscriber]:
    """Connect and subscribe; `auto_ack=False` leaves what comes unacknowledged, as a client that died would."""
    async with connected(host, port, client_id, auto_ack=auto_ack, **options) as connection:
        connection.write(mqtt5.SubscribePacket(1, [mqtt5.TopicFilter(pattern, max_qos=mqtt5.QoS(qos))]).write())
        async with asyncio.timeout(CONNECT_TIMEOUT):
            suback = await connection.suback
        if _is_error(suback.reason_codes[0]):
            raise ConnectionError(f"SUBACK {suback.reason_codes[0]}")
        yield Subscriber(connection)


async def session_exists(host: str, port: int, client_id: str, protocol: str = "5") -> bool:
    """Whether the broker holds a session for this client id.

    It looks by connecting with that id, so ask only when the client itself is away: it would be taken over. The
    session stays with its subscriptions and messages (the ones sent meanwhile are not acknowledged, and come again
    with DUP); its expiry becomes a day. A session that looking would have created is removed.
    """
    look = _session_present_5 if protocol == "5" else _session_present_311
    present = await look(host, port, client_id, clean=False)
    if not present:
        await look(host, port, client_id, clean=True)
    return present


async def _session_present_5(host: str, port: int, client_id: str, *, clean: bool) -> bool:
    expiry = 0 if clean else LONG_SESSION
    options = {"clean_start": clean, "session_expiry_interval": expiry}
    async with connected(host, port, client_id, auto_ack=False, **options) as connection:
        return connection.connack.result().session_present


async def _session_present_311(host: str, port: int, client_id: str, *, clean: bool) -> bool:
    name = client_id.encode()
    body = b"\x00\x04MQTT\x04" + bytes([0x02 if clean else 0x00]) + KEEP_ALIVE.to_bytes(2, "big")
    body += len(name).to_bytes(2, "big") + name
    assert len(body) < 128, "client id too long for a one-byte length"
    async with asyncio.timeout(CONNECT_TIMEOUT):
        reader, writer = await asyncio.open_connection(host, port)
        try:
            writer.write(b"\x10" + bytes([len(body)]) + body)
            kind, _, flags, code = await reader.readexactly(4)
            if kind != 0x20 or code:
                raise ConnectionError(f"CONNACK {code}")
            writer.write(b"\xe0\x00")
            await reader.read()  # until the broker closes
        finally:
            writer.close()
            await writer.wait_closed()
    return bool(flags & 1)


def _is_error(code: Any) -> bool:
    # Reason codes below 0x80 are successes of some kind. The codec's enums convert, but don't compare.
    return int(code) >= 0x80
