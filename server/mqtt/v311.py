"""MQTT 3.1.1: aiomqtt 2 and the paho client under it, made to keep the promises of the port.

aiomqtt hides what they need (session present, DUP, the moment of an acknowledgement), reads with three system calls a
packet, connects in a thread that outlives a cancellation, and its keep-alive check ends a connection whose reading is
paused. So this module owns the socket, the timers and the packets' borders; paho encodes CONNECT and SUBSCRIBE and
decodes every packet, one whole packet at a time; aiomqtt puts paho together and waits for SUBACK and UNSUBACK.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import aiomqtt

from server.core.failures import mqtt_311_reason, subscription_refused
from server.core.lifecycle import Reason
from server.mqtt.port import (
    CONNECT_TIMEOUT_SECONDS,
    LEAVE_CLOSE_SECONDS,
    LEAVE_PINGRESP_SECONDS,
    MESSAGE_OVERHEAD_BYTES,
    PINGRESP_TIMEOUT_SECONDS,
    SUBACK_TIMEOUT_SECONDS,
    ConnectionEndedError,
    Ended,
    Granted,
    Receiver,
    SessionRequest,
    SubscriptionRefusedError,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence

    from paho.mqtt.client import Client as PahoClient
    from paho.mqtt.client import MQTTMessage

    from server.core.acks import Fingerprint
    from server.core.subscription import Subscription
    from server.mqtt.port import Message

# The first bytes of the packets a client may get (MQTT 3.1.1, 2.2), but for PUBLISH, which carries flags.
_PUBLISH = 0x30
_CONNACK = 0x20
_PUBREL = 0x62
_SUBACK = 0x90
_UNSUBACK = 0xB0
_PINGRESP = 0xD0
_FIXED_SIZES = {_CONNACK: 4, _PUBREL: 4, _UNSUBACK: 4, _PINGRESP: 2}
_PINGREQ = b"\xc0\x00"
_DISCONNECT = b"\xe0\x00"
_PUBACK_HEADER = b"\x40\x02"
_PUBCOMP_HEADER = b"\x70\x02"
_REFUSED = 0x80
_VERSION_REFUSED = 1
_QOS_2 = 2
_QOS_INVALID = 3
_READ_BYTES = 256 * 1024
_MALFORMED_SAMPLE_BYTES = 64
_MAX_LENGTH_BYTES = 4
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
    """Makes MQTT 3.1.1 connections."""

    async def connect(self, request: SessionRequest, receiver: Receiver) -> Connection:
        """Connect within CONNECT_TIMEOUT_SECONDS.

        Raises:
            ConnectionEndedError: it could not be made.
        """
        connection = Connection(request, receiver)
        broker = request.broker
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_SECONDS):
                connection.open(await _tcp_connection(broker.host, broker.port))
                await connection.accepted()
        except TimeoutError:
            connection.abort()
            raise ConnectionEndedError(
                Ended(
                    Reason("mqtt_timeout", f"no CONNACK from {broker.address} within {CONNECT_TIMEOUT_SECONDS:g} s"),
                )
            ) from None
        except (OSError, UnicodeError) as error:  # UnicodeError: a host name that no DNS query can carry
            connection.abort()
            what = getattr(error, "strerror", None) or error
            raise ConnectionEndedError(
                Ended(Reason("mqtt_unreachable", f"can't connect to {broker.address}: {what}"))
            ) from error
        except BaseException:
            connection.abort()
            raise
        return connection


class Connection:
    """One MQTT 3.1.1 connection."""

    def __init__(self, request: SessionRequest, receiver: Receiver) -> None:
        self._request = request
        self._receiver = receiver
        self._loop = asyncio.get_running_loop()
        self._wire: _Wire | None = None
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
        self._buffer = bytearray()
        self._needed = 0
        self._heard = False
        self._messages: list[Message] = []
        self._message_bytes = 0
        self._session_present = False
        self._granted: Granted | None = None
        self._connack: asyncio.Future[None] = self._loop.create_future()
        self._pings_unanswered = 0
        self._pings_answered: asyncio.Future[None] | None = None
        self._keep_alive = request.broker.keep_alive
        self._keep_alive_timer: asyncio.TimerHandle | None = None
        self._judge_timer: asyncio.TimerHandle | None = None
        self._silent_since: float | None = None
        self._reading_paused = False
        self._leaving = False
        self._ending: Ended | None = None
        self.ended: asyncio.Future[Ended] = self._loop.create_future()

    @property
    def granted(self) -> Granted:
        """What the broker granted; only after `accepted`."""
        if self._granted is None:
            raise RuntimeError("the broker has not accepted this connection yet")
        return self._granted

    @property
    def is_open(self) -> bool:
        """Whether acknowledgements can still be written."""
        return self._granted is not None and self._ending is None

    def open(self, sock: socket.socket) -> None:
        """Send CONNECT over this connected socket, which is owned from here on."""
        wire = self._wire = _Wire(sock, self._loop)
        self._paho._create_socket = lambda: wire  # type: ignore[method-assign] # noqa: SLF001 - paho's own would block
        broker = self._request.broker
        self._paho.connect(broker.host, broker.port, self._keep_alive)
        wire.watch(self._readable)

    async def accepted(self) -> None:
        """Wait for the broker's CONNACK.

        Raises:
            ConnectionEndedError: it refused, or went away.
        """
        await self._answered(self._connack)

    # --- the socket -------------------------------------------------------------------------------------------------

    def _readable(self) -> None:
        if self._wire is None or self._ending is not None:
            return
        try:
            data = self._wire.read()
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self._lost(error)
            return
        if not data:
            self._lost(None)
            return
        try:
            self._data_received(data)
        except BaseException:
            # As asyncio's transports do: a connection whose messages can't be taken is of no use.
            self._close(Ended(Reason("mqtt_closed", "closed by this side after an internal error")))
            raise

    def _on_register_write(self, *_: object) -> None:
        if self._wire is not None:
            self._wire.watch_writing(self._writable)

    def _on_unregister_write(self, *_: object) -> None:
        if self._wire is not None:
            self._wire.unwatch_writing()

    def _writable(self) -> None:
        if self._ending is None and self._wire is not None and self._paho.loop_write():
            self._lost(self._wire.error)

    def _lost(self, error: OSError | None) -> None:
        """The connection broke; what broke it, None if the broker closed it."""
        by_broker = error is None or isinstance(error, ConnectionResetError | BrokenPipeError)
        # Over 3.1.1 a takeover looks like any other close; and a close is a reset if the broker had unread bytes.
        possible_takeover = by_broker and self._granted is not None
        hint = ", perhaps because another client uses the client id" if possible_takeover else ""
        self._close(
            Ended(
                Reason(
                    "mqtt_connection_lost",
                    f"the connection to {self._request.broker.address} was lost: "
                    f"{error or 'closed by the broker'}{hint}",
                ),
                possible_takeover=possible_takeover,
                silent=error is None and not self._heard,
            )
        )

    # --- what the forwarder asks for --------------------------------------------------------------------------------

    def acknowledge(self, messages: Sequence[Message]) -> None:
        """Write PUBACK for these, in this order; only while the connection is open."""
        acks = [
            _PUBACK_HEADER + message.packet_id.to_bytes(2, "big")
            for message in messages
            if message.packet_id is not None
        ]
        if acks:
            self._write(b"".join(acks))

    @property
    def withheld(self) -> Sequence[tuple[int, Fingerprint]]:
        """None: every acknowledgement is written at once."""
        return ()

    def pause_reading(self) -> None:
        """Leave bytes in the socket, so that the broker feels the back-pressure."""
        if self._wire is not None and not self._reading_paused and not self._leaving and self._ending is None:
            self._reading_paused = True
            self._wire.unwatch()

    def resume_reading(self) -> None:
        """Read again; an outstanding PINGRESP gets its full time from here."""
        if self._wire is not None and self._reading_paused and self._ending is None:
            self._reading_paused = False
            if self._silent_since is not None:
                self._silent_since = time.monotonic()
            self._wire.watch(self._readable)

    async def subscribe(self, subscriptions: Sequence[Subscription]) -> dict[str, int]:
        """Subscribe, and return the QoS granted per filter.

        Raises:
            SubscriptionRefusedError: the broker refused a filter.
            ConnectionEndedError: the connection is gone.
        """
        wanted = [(subscription.topic_filter, subscription.qos) for subscription in subscriptions]
        codes: Sequence[Any] = await self._exchange(
            self._client.subscribe(wanted, timeout=SUBACK_TIMEOUT_SECONDS), "SUBACK"
        )
        if len(codes) != len(wanted):
            raise ConnectionEndedError(self._refuse_packet(f"a SUBACK of {len(codes)} codes for {len(wanted)} filters"))
        granted = {
            topic_filter: int(getattr(code, "value", code))
            for (topic_filter, _), code in zip(wanted, codes, strict=True)
        }
        refused = {topic_filter: code for topic_filter, code in granted.items() if code >= _REFUSED}
        if refused:
            raise SubscriptionRefusedError(subscription_refused(refused))
        return granted

    async def unsubscribe(self, filters: Sequence[str]) -> None:
        """Unsubscribe.

        Raises:
            ConnectionEndedError: the connection is gone.
        """
        await self._exchange(self._client.unsubscribe(list(filters), timeout=SUBACK_TIMEOUT_SECONDS), "UNSUBACK")

    async def leave(self) -> None:
        """Leave so that the broker has seen every acknowledgement, without ending the session (design.md, 4).

        Messages that still arrive are discarded unacknowledged. Bytes left unread at close would become a TCP reset,
        and the broker would forget acknowledgements it had not read yet.
        """
        if self._wire is None or self._ending is not None:
            return
        self.resume_reading()
        self._leaving = True
        self._cancel_timers()
        self._pings_answered = self._loop.create_future()
        try:
            self._send_ping()
            waiting: list[asyncio.Future[Any]] = [self._pings_answered, self.ended]
            await asyncio.wait(waiting, timeout=LEAVE_PINGRESP_SECONDS, return_when=asyncio.FIRST_COMPLETED)
            if not self.ended.done():
                self._write(_DISCONNECT)
                await asyncio.wait([self.ended], timeout=LEAVE_CLOSE_SECONDS)
        finally:
            self.abort()

    def abort(self) -> None:
        """Close at once."""
        self._close(Ended(Reason("mqtt_closed", "closed by this side")))

    # --- packets ----------------------------------------------------------------------------------------------------

    def _data_received(self, data: bytes) -> None:
        """Decode all packets of this read, and hand their messages on together."""
        self._heard = True
        if self._silent_since is not None:
            self._silent_since = time.monotonic()
        buffer = self._buffer
        if buffer:
            buffer += data
            if len(buffer) < self._needed:
                return
            data = bytes(buffer)
            buffer.clear()
        offset, total = 0, len(data)
        size: int | None = 0
        while offset < total:
            size = _packet_size(data, offset)
            if size is None:
                self._malformed(data[offset:], "its length is longer than four bytes")
            elif not size or offset + size > total:
                break
            else:
                self._packet(data[offset : offset + size])
                offset += size
            if self._ending is not None:
                return
        self._hand_over()
        if offset < total and self._ending is None:
            buffer += memoryview(data)[offset:]
            self._needed = size or 0

    def _packet(self, packet: bytes) -> None:
        first = packet[0]
        if first & 0xF0 == _PUBLISH:
            self._on_publish(packet)
            return
        self._hand_over()  # a packet that follows messages must find them handed over
        if self._ending is not None:
            return
        if first not in _CONSUMERS:
            self._refuse_packet(f"a packet that begins with 0x{first:02X} is not for clients")
        elif len(packet) != _FIXED_SIZES.get(first, len(packet)):
            self._malformed(packet, "its size is wrong")
        elif self._granted is None and first != _CONNACK:
            self._refuse_packet(f"a packet that begins with 0x{first:02X} before CONNACK")
        else:
            _CONSUMERS[first](self, packet)

    def _on_publish(self, packet: bytes) -> None:
        qos = packet[0] >> 1 & 3
        if qos == _QOS_INVALID:
            self._malformed(packet, "its QoS is 3")
        elif self._granted is None:
            self._refuse_packet("PUBLISH before CONNACK")
        elif qos == _QOS_2:
            # paho would answer PUBREC at once, before Kafka has it: unanswered it stays with the broker.
            self._hand_over()
            self._close(
                Ended(
                    Reason(
                        "mqtt_qos2_session",
                        "the session holds QoS 2 messages, which can't be received over MQTT 3.1.1 without loss",
                    )
                )
            )
        elif not self._leaving:
            self._decode(packet)

    def _on_message(self, _client: object, _userdata: object, message: MQTTMessage) -> None:
        topic = message.topic  # decodes it: UnicodeDecodeError goes through paho to `_decode`
        if message.qos and not message.mid:
            raise ValueError("its packet id is 0")
        packet_id = message.mid if message.qos else None
        self._messages.append(_Message(topic, bytes(message.payload), message.qos, packet_id, bool(message.dup)))

    def _hand_over(self) -> None:
        messages = self._messages
        if messages and self._ending is None:
            size = self._message_bytes + MESSAGE_OVERHEAD_BYTES * len(messages)
            self._messages, self._message_bytes = [], 0
            self._receiver.received(messages, size)

    def _on_connack(self, packet: bytes) -> None:
        if self._granted is not None:
            self._refuse_packet("a second CONNACK")
            return
        # By hand: paho answers some refusals by connecting again, and says nothing of others.
        code = packet[3]
        if code:
            self._end(Ended(mqtt_311_reason(code), version_refused=code == _VERSION_REFUSED))
            return
        self._decode(packet)
        if self._ending is not None:
            return
        self._granted = Granted(
            protocol="3.1.1",
            session_present=self._session_present,
            client_id=self._request.client_id,
            session_expiry=None,
            subscription_identifiers=False,
        )
        if not self._session_present:
            self._request.unreleased.clear()
        if self._keep_alive:
            self._schedule_ping()
        self._receiver.connected(self)
        if not self._connack.done():
            self._connack.set_result(None)

    def _on_connect(self, _client: object, _userdata: object, flags: Any, *_: object) -> None:
        self._session_present = bool(flags.session_present)

    def _on_answer(self, packet: bytes) -> None:
        self._decode(packet)

    def _on_pubrel(self, packet: bytes) -> None:
        # By hand: paho does not answer while acknowledgements are manual. The message was confirmed over MQTT 5.
        packet_id = packet[2:]
        self._request.unreleased.discard(int.from_bytes(packet_id, "big"))
        self._write(_PUBCOMP_HEADER + packet_id)

    def _on_pingresp(self, _packet: bytes) -> None:
        self._silent_since = None
        self._pings_unanswered = max(0, self._pings_unanswered - 1)
        if not self._pings_unanswered and self._pings_answered is not None and not self._pings_answered.done():
            self._pings_answered.set_result(None)

    def _decode(self, packet: bytes) -> None:
        """Let paho decode a whole packet; it calls back."""
        wire = self._wire
        if wire is None:
            return
        wire.feed(packet)
        try:
            failed = self._paho.loop_read()
        except UnicodeDecodeError:
            self._malformed(packet, "its topic is not valid UTF-8")
        except ValueError as error:
            self._malformed(packet, str(error))
        else:
            if failed:
                self._malformed(packet, failed.name)
            elif packet[0] & 0xF0 == _PUBLISH:
                self._message_bytes += _content_bytes(packet)

    def _malformed(self, data: bytes, what: str) -> None:
        self._hand_over()
        sample = bytes(data[: _packet_size(data, 0) or len(data)])
        self._end(
            Ended(
                Reason(
                    "mqtt_malformed_packet",
                    f"the broker sent a packet that can't be decoded ({what}); it begins with "
                    f"{sample[:_MALFORMED_SAMPLE_BYTES].hex()}",
                ),
                malformed=sample,
            )
        )

    def _refuse_packet(self, what: str) -> Ended:
        ended = Ended(Reason("mqtt_protocol", f"the broker broke the protocol: {what}"))
        self._end(ended)
        return self._ending or ended

    # --- exchanges --------------------------------------------------------------------------------------------------

    def _write(self, data: bytes) -> None:
        """Queue packets; all of one call leave in one write."""
        if self._ending is None:
            # Under the name of PINGREQ: paho closes the socket by itself behind a DISCONNECT.
            self._paho._packet_queue(_PINGREQ[0], data, 0, 0)  # noqa: SLF001 - paho has no public way to write many

    def _end(self, ended: Ended) -> None:
        """Close behind what was written, as far as the socket takes it; `ended` says why."""
        if self._ending is None and self._paho.want_write():
            self._paho.loop_write()
        self._close(ended)

    def _close(self, ended: Ended) -> None:
        if self._ending is None:
            self._ending = ended
            self._cancel_timers()
            if self._wire is not None:
                self._wire.close()
            if not self.ended.done():
                self.ended.set_result(ended)

    async def _exchange(self, call: Coroutine[Any, Any, _T], name: str) -> _T:
        """Wait for what the broker answers to one of aiomqtt's calls, or for the end of the connection."""
        answer = asyncio.ensure_future(call)
        try:
            return await self._answered(answer)
        except aiomqtt.MqttError as error:
            ended = self._ending or Ended(Reason("mqtt_timeout", f"no {name} within {SUBACK_TIMEOUT_SECONDS:g} s"))
            self._end(ended)
            raise ConnectionEndedError(ended) from error
        finally:
            answer.cancel()
            await asyncio.wait([answer])

    async def _answered(self, answer: asyncio.Future[_T]) -> _T:
        waiting: list[asyncio.Future[Any]] = [answer, self.ended]
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        if answer.done():
            return answer.result()
        raise ConnectionEndedError(self.ended.result())

    # --- keep alive -------------------------------------------------------------------------------------------------

    def _schedule_ping(self) -> None:
        # PINGREQs go out at a steady pace, also while reading is paused, so that the broker keeps us.
        self._keep_alive_timer = self._loop.call_later(self._keep_alive, self._ping)

    def _ping(self) -> None:
        if self._silent_since is None:
            self._silent_since = time.monotonic()
            self._judge_timer = self._loop.call_later(PINGRESP_TIMEOUT_SECONDS, self._judge_pingresp)
        self._send_ping()
        self._schedule_ping()

    def _send_ping(self) -> None:
        self._pings_unanswered += 1
        self._write(_PINGREQ)

    def _judge_pingresp(self) -> None:
        """End a silent connection.

        Not while reading is paused, and not while messages come: PINGRESP waits behind all that the broker has queued.
        """
        if self._silent_since is None:
            return
        silent_for = time.monotonic() - self._silent_since
        if self._reading_paused or silent_for < PINGRESP_TIMEOUT_SECONDS:
            remaining = PINGRESP_TIMEOUT_SECONDS if self._reading_paused else PINGRESP_TIMEOUT_SECONDS - silent_for
            self._judge_timer = self._loop.call_later(remaining, self._judge_pingresp)
            return
        self._close(
            Ended(Reason("mqtt_keep_alive", f"the broker did not answer PINGREQ within {PINGRESP_TIMEOUT_SECONDS:g} s"))
        )

    def _cancel_timers(self) -> None:
        for timer in (self._keep_alive_timer, self._judge_timer):
            if timer is not None:
                timer.cancel()


_CONSUMERS: dict[int, Callable[[Connection, bytes], None]] = {
    _CONNACK: Connection._on_connack,  # noqa: SLF001 - one class, kept as a table
    _PUBREL: Connection._on_pubrel,  # noqa: SLF001
    _SUBACK: Connection._on_answer,  # noqa: SLF001
    _UNSUBACK: Connection._on_answer,  # noqa: SLF001
    _PINGRESP: Connection._on_pingresp,  # noqa: SLF001
}


class _Wire:
    """A socket watched by the event loop, which paho takes for its own: it reads only the packet it is fed."""

    def __init__(self, sock: socket.socket, loop: asyncio.AbstractEventLoop) -> None:
        self._sock = sock
        self._loop = loop
        self._packet = b""
        self._position = 0
        self._closed = False
        self.error: OSError | None = None

    def watch(self, readable: Callable[[], None]) -> None:
        """Call this when there is something to read."""
        if not self._closed:
            self._loop.add_reader(self._sock.fileno(), readable)

    def unwatch(self) -> None:
        """Leave bytes where they are."""
        if not self._closed:
            self._loop.remove_reader(self._sock.fileno())

    def watch_writing(self, writable: Callable[[], None]) -> None:
        """Call this when there is room to write."""
        if not self._closed:
            self._loop.add_writer(self._sock.fileno(), writable)

    def unwatch_writing(self) -> None:
        """Nothing more to write."""
        if not self._closed:
            self._loop.remove_writer(self._sock.fileno())

    def read(self) -> bytes:
        """What the socket has."""
        return self._sock.recv(_READ_BYTES)

    def feed(self, packet: bytes) -> None:
        """What paho reads next."""
        self._packet, self._position = packet, 0

    # What paho calls.

    def recv(self, size: int) -> bytes:
        """Part of the packet that was fed."""
        start = self._position
        self._position = start + size
        part = self._packet[start : start + size]
        if not part:
            raise BlockingIOError
        return part

    def send(self, data: bytes | bytearray) -> int:
        """Write to the socket what it takes."""
        try:
            return self._sock.send(data)
        except BlockingIOError:
            raise
        except OSError as error:
            self.error = error
            raise

    def fileno(self) -> int:
        """The socket's descriptor."""
        return self._sock.fileno()

    def setblocking(self, flag: bool) -> None:
        """Nothing: the event loop needs it non-blocking, and so it is."""

    def close(self) -> None:
        """Close the socket, and let the event loop forget it first."""
        if not self._closed:
            self.unwatch()
            self.unwatch_writing()
            self._closed = True
            self._sock.close()


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


async def _tcp_connection(host: str, port: int) -> socket.socket:
    """Connect to the first of the host's addresses that accepts."""
    loop = asyncio.get_running_loop()
    failure: OSError = OSError("the host has no address")
    for family, kind, protocol, _, address in await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM):
        try:
            sock = socket.socket(family, kind, protocol)
        except OSError as error:  # a family this machine does not have
            failure = error
            continue
        try:
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await loop.sock_connect(sock, address)
        except OSError as error:
            sock.close()
            failure = error
        except BaseException:
            sock.close()
            raise
        else:
            return sock
    raise failure


def _packet_size(data: bytes, offset: int) -> int | None:
    """The size of the packet that begins here; 0 while its length is not complete, None if it is too long (2.2.3)."""
    length = 0
    for index in range(_MAX_LENGTH_BYTES):
        position = offset + 1 + index
        if position >= len(data):
            return 0
        length |= (data[position] & 0x7F) << (7 * index)
        if not data[position] & 0x80:
            return 2 + index + length
    return None


def _content_bytes(packet: bytes) -> int:
    """The bytes of a PUBLISH packet that are topic and payload."""
    header = 1
    while packet[header] & 0x80:
        header += 1
    return len(packet) - header - 1 - 2 - (2 if packet[0] & 0x06 else 0)
