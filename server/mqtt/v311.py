"""MQTT 3.1.1: aiomqtt 2 and the paho client under it, made to keep the promises of the port.

aiomqtt hides what they need (session present, DUP, the moment of an acknowledgement), reads with three system calls a
packet, connects in a thread that outlives a cancellation, and its keep-alive check ends a connection whose reading is
paused. So this module owns the socket, the timers and the packets' borders; paho encodes CONNECT and SUBSCRIBE and
decodes every packet, one whole packet at a time; aiomqtt puts paho together and waits for SUBACK and UNSUBACK.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import aiomqtt

from server.core.failures import mqtt_311_reason, subscription_refused
from server.core.lifecycle import Reason
from server.mqtt import connection as base
from server.mqtt.connection import REFUSED, SLICE_BYTES, SLICE_PACKETS, BaseConnection
from server.mqtt.dial import Dialer
from server.mqtt.packet import packet_size, split_publish
from server.mqtt.port import ConnectionEndedError, Ended, Granted, SubscriptionRefusedError
from server.mqtt.readbuffer import SharedBuffer
from server.mqtt.wire import SocketWire, StreamWire, Wire, tcp_connection
from server.ticks import Ticks

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence

    from paho.mqtt.client import Client as PahoClient
    from paho.mqtt.client import MQTTMessage

    from server.core.subscription import Subscription
    from server.mqtt.port import Message, Receiver, SessionRequest

# The first bytes of the packets a client may get (MQTT 3.1.1, 2.2), but for PUBLISH, which carries flags.
_PUBLISH = 0x30
_CONNACK = 0x20
_PUBREL = 0x62
_SUBACK = 0x90
_UNSUBACK = 0xB0
_PINGRESP = 0xD0
_FIXED_SIZES = {_CONNACK: 4, _PUBREL: 4, _UNSUBACK: 4, _PINGRESP: 2}
_PINGREQ = 0xC0
_PUBCOMP_HEADER = b"\x70\x02"
_VERSION_REFUSED = 1
_QOS_2 = 2
_QOS_INVALID = 3
# What paho holds at most while its socket takes nothing, as the loop's transports do by default.
_QUEUED_BYTES = 64 * 1024
_NOTHING = memoryview(b"")
_T = TypeVar("_T")

# paho and aiomqtt log what is told through `ended` already.
_QUIET = logging.getLogger(f"{__name__}.aiomqtt")
_QUIET.setLevel(logging.CRITICAL + 1)


@dataclass(slots=True)
class _Message:
    """A message as received."""

    topic: str
    payload: bytes
    qos: int
    packet_id: int | None
    duplicate: bool

    @property
    def subscription_ids(self) -> list[int]:
        """None in this version of the protocol."""
        return []


class Connector:
    """Makes MQTT 3.1.1 connections, of one event loop."""

    def __init__(self, dialer: Dialer | None = None) -> None:
        self._dialer = dialer or Dialer()
        self._shared = SharedBuffer()
        self._ticks = Ticks()

    async def connect(self, request: SessionRequest, receiver: Receiver) -> Connection:
        """Connect within a limited time.

        Raises:
            ConnectionEndedError: it could not be made.
        """
        connection = Connection(request, receiver, self._shared, self._ticks)
        await connection.connect(connection.open(self._dialer))
        return connection


class Connection(BaseConnection):
    """One MQTT 3.1.1 connection."""

    def __init__(self, request: SessionRequest, receiver: Receiver, shared: SharedBuffer, ticks: Ticks) -> None:
        super().__init__(request, receiver, shared, ticks)
        self._wire: Wire | None = None
        self._client = _client(request)
        self._paho: PahoClient = self._client._client  # noqa: SLF001 - aiomqtt has no public way to acknowledge
        self._paho.manual_ack_set(True)
        self._paho.on_connect = self._on_connect
        self._paho.on_message = self._on_message
        self._paho.on_disconnect = None
        self._paho.on_socket_open = None
        self._paho.on_socket_close = None
        self._paho.on_socket_register_write = self._on_register_write
        self._paho.on_socket_unregister_write = self._on_unregister_write
        self._messages: list[Message] = []
        self._message_bytes = 0
        self._payload = _NOTHING  # of the message that paho decodes
        self._session_present = False
        self._queued = 0  # bytes, with paho

    async def open(self, dialer: Dialer) -> None:
        """Open what carries MQTT and send CONNECT.

        Raises:
            ConnectionEndedError: TLS or WebSocket failed.
            OSError: no address of the broker can be reached.
        """
        broker = self._request.broker
        wire = await self._plain_wire() if broker.is_plain_tcp else await self._stream_wire(dialer)
        if self._ending is not None:  # the broker said something it may not before it was asked
            wire.close()
            return
        self._wire = wire
        self._paho._create_socket = lambda: wire  # type: ignore[method-assign] # noqa: SLF001 - paho's own would block
        self._paho.connect(broker.host, broker.port, self._keep_alive)
        wire.start_reading()

    async def _plain_wire(self) -> Wire:
        broker = self._request.broker
        return SocketWire(await tcp_connection(broker.host, broker.port), self._loop, self)

    async def _stream_wire(self, dialer: Dialer) -> Wire:
        wire = StreamWire(self._loop, self)
        try:
            await dialer.open(wire, self._request.broker)
        except BaseException:
            wire.close()
            raise
        return wire

    # --- the wire's reader ------------------------------------------------------------------------------------------

    def room(self) -> memoryview:
        """Where the next read goes."""
        return self._reads.room()

    def arrived(self, size: int) -> None:
        """So much was read there."""
        if self._wire is None:
            self.refuse_packet("something before CONNECT")
            return
        try:
            self.heard(size)
        except BaseException:
            # As asyncio's transports do: a connection whose messages can't be taken is of no use.
            self._abort(Ended(Reason("mqtt_closed", "closed by this side after an internal error")))
            raise

    def broke(self, error: Exception | None) -> None:
        """The connection broke; what broke it, None if the broker closed it."""
        self._abort(self.lost(error))

    # --- what paho asks of the wire ---------------------------------------------------------------------------------

    def _on_register_write(self, *_: object) -> None:
        if self._wire is not None:
            self._wire.watch_writing(self._writable)

    def _on_unregister_write(self, *_: object) -> None:
        if self._wire is not None:
            self._wire.unwatch_writing()

    def _writable(self) -> None:
        if self._ending is not None or self._wire is None:
            return
        if self._paho.loop_write():
            self.broke(self._wire.error)
        elif not self._paho.want_write():
            self._queued = 0
            if self._writing_paused and not self._wire.is_full:
                self.resume_writing()

    # --- what the forwarder asks for --------------------------------------------------------------------------------

    def acknowledge(self, messages: Sequence[Message]) -> None:
        """Write PUBACK for these, in this order; only while the connection is open."""
        self._write(b"", pubacks_for=[message.packet_id for message in messages if message.packet_id is not None])

    async def subscribe(self, subscriptions: Sequence[Subscription]) -> dict[str, int]:
        """Subscribe, and return the QoS granted per filter.

        Raises:
            SubscriptionRefusedError: the broker refused a filter.
            ConnectionEndedError: the connection is gone.
        """
        wanted = [(subscription.topic_filter, subscription.qos) for subscription in subscriptions]
        codes: Sequence[Any] = await self._exchange(
            self._client.subscribe(wanted, timeout=base.SUBACK_TIMEOUT_SECONDS), "SUBACK"
        )
        if len(codes) != len(wanted):
            raise ConnectionEndedError(self.refuse_packet(f"a SUBACK of {len(codes)} codes for {len(wanted)} filters"))
        granted = {
            topic_filter: int(getattr(code, "value", code))
            for (topic_filter, _), code in zip(wanted, codes, strict=True)
        }
        refused = {topic_filter: code for topic_filter, code in granted.items() if code >= REFUSED}
        if refused:
            raise SubscriptionRefusedError(subscription_refused(refused))
        return granted

    async def unsubscribe(self, filters: Sequence[str]) -> None:
        """Unsubscribe.

        Raises:
            ConnectionEndedError: the connection is gone.
        """
        await self._exchange(self._client.unsubscribe(list(filters), timeout=base.SUBACK_TIMEOUT_SECONDS), "UNSUBACK")

    # --- packets ----------------------------------------------------------------------------------------------------

    def _take_in(self, data: memoryview) -> None:
        if self._granted is None and self.is_foreign(data):
            return
        offset, began, total = 0, 0, len(data)
        while offset < total and not self._reading_paused:
            size = packet_size(data, offset)
            if size is None:
                self._malformed(data[offset:], "its length is longer than four bytes")
            elif not size or offset + size > total:
                break
            else:
                self._packet(data[offset : offset + size])
                offset += size
            if self._ending is not None:
                return
            if len(self._messages) >= SLICE_PACKETS or offset - began >= SLICE_BYTES:
                began = offset
                self._hand_over_read()
                self._receiver.receiving(total - offset)
        self._hand_over_read()
        self._receiver.all_received()
        if offset < total and self._ending is None:
            self._reads.keep(data[offset:])

    def _packet(self, received: memoryview) -> None:
        first = received[0]
        if first & 0xF0 == _PUBLISH:
            self._on_publish(received)
            return
        packet = bytes(received)
        self._hand_over_read()  # a packet that follows messages must find them handed over
        if self._ending is not None:
            return
        if first not in _CONSUMERS:
            self.refuse_packet(f"a packet that begins with 0x{first:02X} is not for clients")
        elif len(packet) != _FIXED_SIZES.get(first, len(packet)):
            self._malformed(packet, "its size is wrong")
        elif self._granted is None and first != _CONNACK:
            self.refuse_packet(f"a packet that begins with 0x{first:02X} before CONNACK")
        else:
            _CONSUMERS[first](self, packet)

    def _on_publish(self, packet: memoryview) -> None:
        qos = packet[0] >> 1 & 3
        if qos == _QOS_INVALID:
            self._malformed(packet, "its QoS is 3")
        elif self._granted is None:
            self.refuse_packet("PUBLISH before CONNACK")
        elif qos == _QOS_2:
            # paho would answer PUBREC at once, before Kafka has it: unanswered it stays with the broker.
            self._hand_over_read()
            self._abort(
                Ended(
                    Reason(
                        "mqtt_qos2_session",
                        "the session holds QoS 2 messages, which can't be received over MQTT 3.1.1 without loss",
                    )
                )
            )
        else:
            # Without its payload, of which paho would make six copies.
            head, self._payload = split_publish(packet)
            self._decode(head, packet)
            self._payload = _NOTHING

    def _on_message(self, _client: object, _userdata: object, message: MQTTMessage) -> None:
        topic = message.topic  # decodes it: UnicodeDecodeError goes through paho to `_decode`
        if message.qos and not message.mid:
            raise ValueError("its packet id is 0")
        packet_id = message.mid if message.qos else None
        self._message_bytes += len(topic.encode()) + len(self._payload)
        self._messages.append(_Message(topic, bytes(self._payload), message.qos, packet_id, bool(message.dup)))

    def _hand_over_read(self) -> None:
        messages, size = self._messages, self._message_bytes
        if messages and self._ending is None:
            self._messages, self._message_bytes = [], 0
            self.hand_over(messages, size)

    def _on_connack(self, packet: bytes) -> None:
        if self._granted is not None:
            self.refuse_packet("a second CONNACK")
            return
        # By hand: paho answers some refusals by connecting again, and says nothing of others.
        code = packet[3]
        if code:
            self._end(Ended(mqtt_311_reason(code), version_refused=code == _VERSION_REFUSED))
            return
        self._decode(packet, packet)
        if self._ending is not None:
            return
        if not self._session_present:
            self._request.unreleased.clear()
        self.accept(
            Granted(
                protocol="3.1.1",
                session_present=self._session_present,
                client_id=self._request.client_id,
                session_expiry=None,
                subscription_identifiers=False,
            )
        )

    def _on_connect(self, _client: object, _userdata: object, flags: Any, *_: object) -> None:
        self._session_present = bool(flags.session_present)

    def _on_answer(self, packet: bytes) -> None:
        self._decode(packet, packet)

    def _on_pubrel(self, packet: bytes) -> None:
        # By hand: paho does not answer while acknowledgements are manual. The message was confirmed over MQTT 5.
        packet_id = packet[2:]
        self._request.unreleased.discard(int.from_bytes(packet_id, "big"))
        self._write(_PUBCOMP_HEADER + packet_id)

    def _on_pingresp(self, _packet: bytes) -> None:
        self.take_pingresp()

    def _decode(self, packet: bytes, received: bytes | memoryview) -> None:
        """Let paho decode a packet, or the part of what was received that it has to know; it calls back."""
        wire = self._wire
        if wire is None:
            return
        wire.feed(packet)
        try:
            failed = self._paho.loop_read()
        except UnicodeDecodeError:
            self._malformed(received, "its topic is not valid UTF-8")
        except ValueError as error:
            self._malformed(received, str(error))
        else:
            if failed:
                self._malformed(received, failed.name)

    def _malformed(self, data: bytes | memoryview, what: str) -> None:
        self._hand_over_read()
        self.malformed(data, what)

    # --- the wire ---------------------------------------------------------------------------------------------------

    @property
    def _is_connected(self) -> bool:
        return self._wire is not None

    def _send(self, data: bytes) -> None:
        """Queue packets; all of one call leave in one write."""
        if data:
            # Under the name of PINGREQ: paho closes the socket by itself behind a DISCONNECT.
            self._paho._packet_queue(_PINGREQ, data, 0, 0)  # noqa: SLF001 - paho has no public way to write many
            self._queued += len(data)
            if self._queued > _QUEUED_BYTES and not self._writing_paused:
                self.pause_writing()

    def _stop_reading(self) -> None:
        if self._wire is not None:
            self._wire.stop_reading()

    def _start_reading(self) -> None:
        if self._wire is not None:
            self._wire.start_reading()

    def _end(self, ended: Ended) -> None:
        if self._ending is None and self._wire is not None:
            self._send_all()
            if self._paho.want_write():
                self._paho.loop_write()
            self._wire.finish()
        self._abort(ended)

    def _abort(self, ended: Ended) -> None:
        if self._ending is None:
            self._ending = ended
            if self._wire is not None:
                self._wire.close()
            self.closed(ended)

    async def _acknowledgements_written(self, within: float) -> None:
        """Nothing to wait for: they are written at once."""

    def _disconnect_for(self, _code: int) -> bytes:
        return b""

    # --- exchanges --------------------------------------------------------------------------------------------------

    async def _exchange(self, call: Coroutine[Any, Any, _T], name: str) -> _T:
        """Wait for what the broker answers to one of aiomqtt's calls, or for the end of the connection."""
        answer = asyncio.ensure_future(call)
        try:
            return await self.answered(answer)
        except aiomqtt.MqttError as error:
            raise self.no_answer(name) from error
        finally:
            answer.cancel()
            await asyncio.wait([answer])


_CONSUMERS: dict[int, Callable[[Connection, bytes], None]] = {
    _CONNACK: Connection._on_connack,  # noqa: SLF001 - one class, kept as a table
    _PUBREL: Connection._on_pubrel,  # noqa: SLF001
    _SUBACK: Connection._on_answer,  # noqa: SLF001
    _UNSUBACK: Connection._on_answer,  # noqa: SLF001
    _PINGRESP: Connection._on_pingresp,  # noqa: SLF001
}


def _client(request: SessionRequest) -> aiomqtt.Client:
    broker = request.broker
    credentials = broker.credentials
    password = credentials.password if credentials else None
    return aiomqtt.Client(
        broker.host,
        broker.port,
        username=credentials.username if credentials else None,
        password=password.get_secret_value() if password else None,
        identifier=request.client_id or None,
        protocol=aiomqtt.ProtocolVersion.V311,
        clean_session=request.clean_start or request.session_expiry == 0 or not request.client_id,
        keepalive=broker.keep_alive,
        logger=_QUIET,
    )
