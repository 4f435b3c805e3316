"""MQTT 5: the `mqtt5` codec on an asyncio.Protocol.

One read from the socket becomes one call to the receiver with all its messages; acknowledgements go out as one write
per call. Nothing here awaits but the few exchanges of connecting, subscribing and leaving.
"""

from __future__ import annotations

import asyncio
import time
from itertools import groupby
from typing import TYPE_CHECKING, Any, TypeVar, cast

import mqtt5

from server.core.failures import SESSION_TAKEN_OVER, UNSUPPORTED_PROTOCOL_VERSION, mqtt_reason, subscription_refused
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
from server.mqtt.release import Release

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from server.core.acks import Fingerprint
    from server.core.subscription import Subscription
    from server.mqtt.port import Message

# How a broker that speaks only 3.1.1 refuses: its CONNACK with return code 1. The codec calls it malformed.
_CONNACK_OF_311 = bytes.fromhex("20020001")
_REFUSED = 0x80
_DISCONNECT = mqtt5.DisconnectPacket().write()
_PINGREQ = mqtt5.PingReqPacket().write()
_MALFORMED_SAMPLE_BYTES = 64
_MAX_LENGTH_BYTES = 4
_T = TypeVar("_T")


class Connector:
    """Makes MQTT 5 connections."""

    async def connect(self, request: SessionRequest, receiver: Receiver) -> Connection:
        """Connect within CONNECT_TIMEOUT_SECONDS.

        Raises:
            ConnectionEndedError: it could not be made.
        """
        connection = Connection(request, receiver)
        broker = request.broker
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_SECONDS):
                await loop.create_connection(lambda: connection, broker.host, broker.port)
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
        except asyncio.CancelledError:
            connection.abort()
            raise
        return connection


class Connection(asyncio.Protocol):
    """One MQTT 5 connection."""

    def __init__(self, request: SessionRequest, receiver: Receiver) -> None:
        self._request = request
        self._receiver = receiver
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._buffer = bytearray()
        self._needed = 0
        self._heard = False
        self._granted: Granted | None = None
        self._connack: asyncio.Future[None] = self._loop.create_future()
        self._answers: dict[int, asyncio.Future[list[int]]] = {}
        self._next_packet_id = 1
        self._release = Release(request.unreleased)
        self._all_written: asyncio.Future[None] | None = None
        self._pings_unanswered = 0
        self._pings_answered: asyncio.Future[None] | None = None
        self._keep_alive = request.broker.keep_alive
        self._keep_alive_timer: asyncio.TimerHandle | None = None
        self._silent_since: float | None = None
        self._reading_paused = False
        self._leaving = False
        self._ending: Ended | None = None
        self.ended: asyncio.Future[Ended] = self._loop.create_future()
        self._consumers: dict[type, Callable[[Any], None]] = {
            mqtt5.ConnAckPacket: self._on_connack,
            mqtt5.PubRelPacket: self._on_pubrel,
            mqtt5.SubAckPacket: self._on_answer,
            mqtt5.UnsubAckPacket: self._on_answer,
            mqtt5.PingRespPacket: self._on_pingresp,
            mqtt5.DisconnectPacket: self._on_disconnect,
        }

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

    async def accepted(self) -> None:
        """Wait for the broker's CONNACK.

        Raises:
            ConnectionEndedError: it refused, or went away.
        """
        await self._answered(self._connack)

    # --- asyncio.Protocol -------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send CONNECT."""
        self._transport = cast("asyncio.Transport", transport)
        if self.ended.done():  # aborted while connecting
            self._transport.abort()
            return
        request = self._request
        credentials = request.broker.credentials
        password = credentials.password if credentials else None
        self._transport.write(
            mqtt5.ConnectPacket(
                client_id=request.client_id,
                username=credentials.username if credentials else None,
                password=password.get_secret_value().encode() if password else None,
                clean_start=request.clean_start,
                keep_alive=self._keep_alive,
                session_expiry_interval=request.session_expiry,
                receive_max=request.receive_maximum,
            ).write()
        )

    def data_received(self, data: bytes) -> None:
        """Decode all packets of this read, and hand their messages on together."""
        if self._ending is not None:
            return
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
        if self._granted is None and data.startswith(_CONNACK_OF_311):
            said = "this broker speaks MQTT 3.1.1"
            self._end(Ended(mqtt_reason(UNSUPPORTED_PROTOCOL_VERSION, said), version_refused=True))
            return
        packets, used, malformed = _decode(data)
        self._dispatch(packets, used)
        if self._ending is not None:
            return
        if malformed is not None:
            self._malformed(data[used:], malformed)
        elif used < len(data):
            buffer += memoryview(data)[used:]
            self._needed = _packet_size(buffer)

    def _dispatch(self, packets: list[Any], used: int) -> None:
        """Hand on what was decoded from `used` bytes: messages together, other packets in their place between them."""
        publish = mqtt5.PublishPacket
        messages: list[Message] = [packet for packet in packets if type(packet) is publish]
        if len(messages) == len(packets):
            if messages:
                self._hand_over(messages, used)
            return
        for are_messages, run in groupby(packets, lambda packet: type(packet) is publish):
            if self._ending is not None:
                return
            if are_messages:
                messages = list(run)
                self._hand_over(messages, sum(len(each.topic) + len(each.payload) for each in messages))
            else:
                for packet in run:
                    self._consume(packet)

    def eof_received(self) -> bool:
        """Let the transport close."""
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell everyone who waits."""
        if self._keep_alive_timer:
            self._keep_alive_timer.cancel()
        ended = self._ending or Ended(
            Reason(
                "mqtt_connection_lost",
                f"the connection to {self._request.broker.address} was lost: {exc or 'closed by the broker'}",
            ),
            silent=exc is None and not self._heard,
        )
        self._ending = ended
        if not self.ended.done():
            self.ended.set_result(ended)

    # --- what the forwarder asks for --------------------------------------------------------------------------------

    def acknowledge(self, messages: Sequence[Message]) -> None:
        """Write PUBACK or PUBREC for these, in this order; only while the connection is open."""
        puback = mqtt5.PubAckPacket
        acks: list[bytes] = []
        for message in messages:
            packet_id = message.packet_id
            if packet_id is None:
                continue
            if message.qos == 1:
                acks.append(puback(packet_id).write())
            else:
                self._release.due(packet_id, message)
        acks.append(self._release.pubrecs())
        self._write(b"".join(acks))

    @property
    def withheld(self) -> Sequence[tuple[int, Fingerprint]]:
        """Packet ids whose acknowledgement was asked for and is not written yet, and what they delivered."""
        return self._release.withheld

    def pause_reading(self) -> None:
        """Leave bytes in the socket, so that the broker feels the back-pressure."""
        if self._transport is not None and not self._reading_paused and not self._leaving and self._ending is None:
            self._reading_paused = True
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        """Read again; an outstanding PINGRESP gets its full time from here."""
        if self._transport is not None and self._reading_paused and self._ending is None:
            self._reading_paused = False
            if self._silent_since is not None:
                self._silent_since = time.monotonic()
            self._transport.resume_reading()

    async def subscribe(self, subscriptions: Sequence[Subscription]) -> dict[str, int]:
        """Subscribe, and return the QoS granted per filter.

        Raises:
            SubscriptionRefusedError: the broker refused a filter.
            ConnectionEndedError: the connection is gone.
        """
        waiting = []
        for subscription in subscriptions:  # one identifier per SUBSCRIBE packet, hence one packet per filter
            packet_id, answer = self._expect_answer()
            self._write(
                mqtt5.SubscribePacket(
                    packet_id,
                    [
                        mqtt5.TopicFilter(
                            subscription.topic_filter,
                            max_qos=mqtt5.QoS(subscription.qos),
                            # Retained messages are replayed for a new subscription only, not on every reconnect.
                            retain_handling=mqtt5.RetainHandling.SEND_IF_SUBSCRIPTION_NOT_EXISTS,
                        )
                    ],
                    subscription_id=subscription.identifier,
                ).write()
            )
            waiting.append((subscription.topic_filter, answer))
        codes = {topic_filter: (await self._answer(answer, "SUBACK"))[0] for topic_filter, answer in waiting}
        refused = {topic_filter: code for topic_filter, code in codes.items() if code >= _REFUSED}
        if refused:
            raise SubscriptionRefusedError(subscription_refused(refused))
        return codes

    async def unsubscribe(self, filters: Sequence[str]) -> None:
        """Unsubscribe.

        Raises:
            ConnectionEndedError: the connection is gone.
        """
        packet_id, answer = self._expect_answer()
        self._write(mqtt5.UnsubscribePacket(packet_id, list(filters)).write())
        await self._answer(answer, "UNSUBACK")

    async def leave(self) -> None:
        """Leave so that the broker has seen every acknowledgement, without ending the session (design.md, 4).

        Messages that still arrive are discarded unacknowledged. Bytes left unread at close would become a TCP reset,
        and the broker would forget acknowledgements it had not read yet.
        """
        if self._transport is None or self._ending is not None:
            return
        self.resume_reading()
        self._leaving = True
        try:
            if not self._release.is_empty:
                self._all_written = self._loop.create_future()
                await self._or_ended(self._all_written, LEAVE_PINGRESP_SECONDS)
            self._pings_answered = self._loop.create_future()
            self._send_ping()
            await self._or_ended(self._pings_answered, LEAVE_PINGRESP_SECONDS)
            if not self.ended.done():
                self._transport.write(_DISCONNECT)
                await asyncio.wait([self.ended], timeout=LEAVE_CLOSE_SECONDS)
        finally:
            self.abort()

    async def _or_ended(self, future: asyncio.Future[None], seconds: float) -> None:
        waiting: list[asyncio.Future[Any]] = [future, self.ended]
        await asyncio.wait(waiting, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)

    def abort(self) -> None:
        """Close at once."""
        if self._ending is None:
            self._ending = Ended(Reason("mqtt_closed", "closed by this side"))
        if self._transport is not None:
            self._transport.abort()
        elif not self.ended.done():
            self.ended.set_result(self._ending)

    # --- packets ----------------------------------------------------------------------------------------------------

    def _hand_over(self, messages: list[Message], message_bytes: int) -> None:
        if self._granted is None:
            self._refuse_packet("PUBLISH before CONNACK")
        elif not self._leaving:
            self._receiver.received(messages, message_bytes + MESSAGE_OVERHEAD_BYTES * len(messages))

    def _consume(self, packet: object) -> None:
        consumer = self._consumers.get(type(packet))
        if consumer is None:
            self._refuse_packet(f"{type(packet).__name__} is not for clients")
        else:
            consumer(packet)

    def _on_connack(self, packet: mqtt5.ConnAckPacket) -> None:
        if self._granted is not None:
            self._refuse_packet("a second CONNACK")
            return
        code = int(packet.reason_code)
        if code >= _REFUSED:
            self._end(Ended(mqtt_reason(code, packet.reason_str), version_refused=code == UNSUPPORTED_PROTOCOL_VERSION))
            return
        if packet.server_keep_alive is not None:
            self._keep_alive = packet.server_keep_alive
        asked = self._request
        self._granted = Granted(
            protocol="5",
            session_present=packet.session_present,
            client_id=packet.assigned_client_id or asked.client_id,
            session_expiry=(
                asked.session_expiry if packet.session_expiry_interval is None else packet.session_expiry_interval
            ),
            subscription_identifiers=packet.subscription_id_available,
        )
        if not packet.session_present:
            self._release.forget()
        if self._keep_alive:
            self._schedule_ping()
        self._receiver.connected(self)
        self._connack.set_result(None)

    def _on_pubrel(self, packet: mqtt5.PubRelPacket) -> None:
        self._write(self._release.pubcomp(packet.packet_id) + self._release.pubrecs())
        if self._all_written is not None and self._release.is_empty and not self._all_written.done():
            self._all_written.set_result(None)

    def _on_answer(self, packet: mqtt5.SubAckPacket | mqtt5.UnsubAckPacket) -> None:
        answer = self._answers.pop(packet.packet_id, None)
        if answer is not None and not answer.done():
            answer.set_result([int(code) for code in packet.reason_codes])

    def _on_pingresp(self, _packet: mqtt5.PingRespPacket) -> None:
        self._silent_since = None
        self._pings_unanswered = max(0, self._pings_unanswered - 1)
        if not self._pings_unanswered and self._pings_answered is not None and not self._pings_answered.done():
            self._pings_answered.set_result(None)

    def _on_disconnect(self, packet: mqtt5.DisconnectPacket) -> None:
        code = int(packet.reason_code)
        self._end(Ended(mqtt_reason(code, packet.reason_str), takeover=code == SESSION_TAKEN_OVER))

    def _malformed(self, data: bytes, what: str) -> None:
        code = mqtt5.DisconnectReasonCode.MALFORMED_PACKET
        self._write(mqtt5.DisconnectPacket(reason_code=code).write())
        sample = bytes(data[: min(_packet_size(data), len(data))])
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

    def _refuse_packet(self, what: str) -> None:
        code = mqtt5.DisconnectReasonCode.PROTOCOL_ERROR
        self._write(mqtt5.DisconnectPacket(reason_code=code).write())
        self._end(Ended(Reason("mqtt_protocol", f"the broker broke the protocol: {what}")))

    # --- exchanges --------------------------------------------------------------------------------------------------

    def _write(self, data: bytes) -> None:
        if self._transport is not None and self._ending is None:
            self._transport.write(data)

    def _end(self, ended: Ended) -> None:
        """Close in order, after what was written; `ended` says why."""
        if self._ending is None:
            self._ending = ended
        if self._transport is not None:
            self._transport.close()

    def _expect_answer(self) -> tuple[int, asyncio.Future[list[int]]]:
        packet_id = self._next_packet_id
        self._next_packet_id = packet_id % 0xFFFF + 1
        answer: asyncio.Future[list[int]] = self._loop.create_future()
        self._answers[packet_id] = answer
        return packet_id, answer

    async def _answer(self, answer: asyncio.Future[list[int]], name: str) -> list[int]:
        try:
            async with asyncio.timeout(SUBACK_TIMEOUT_SECONDS):
                return await self._answered(answer)
        except TimeoutError:
            ended = Ended(Reason("mqtt_timeout", f"no {name} within {SUBACK_TIMEOUT_SECONDS:g} s"))
            self._end(ended)
            raise ConnectionEndedError(ended) from None

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
        if self._ending is not None or self._leaving:
            return
        if self._silent_since is None:
            self._silent_since = time.monotonic()
            self._loop.call_later(PINGRESP_TIMEOUT_SECONDS, self._judge_pingresp)
        self._send_ping()
        self._schedule_ping()

    def _send_ping(self) -> None:
        self._pings_unanswered += 1
        self._write(_PINGREQ)

    def _judge_pingresp(self) -> None:
        """End a silent connection.

        Not while reading is paused, and not while messages come: PINGRESP waits behind all that the broker has queued.
        """
        if self._ending is not None or self._silent_since is None:
            return
        silent_for = time.monotonic() - self._silent_since
        if self._reading_paused or silent_for < PINGRESP_TIMEOUT_SECONDS:
            remaining = PINGRESP_TIMEOUT_SECONDS if self._reading_paused else PINGRESP_TIMEOUT_SECONDS - silent_for
            self._loop.call_later(remaining, self._judge_pingresp)
            return
        self._ending = Ended(
            Reason("mqtt_keep_alive", f"the broker did not answer PINGREQ within {PINGRESP_TIMEOUT_SECONDS:g} s")
        )
        if self._transport is not None:
            self._transport.abort()


def _decode(data: bytes) -> tuple[list[Any], int, str | None]:
    """The packets that are complete, the bytes they took, and what is wrong with the one after them, if it is."""
    packets: list[Any] = []
    read, append, view, total, offset = mqtt5.read, packets.append, memoryview(data), len(data), 0
    try:
        while offset < total:
            packet, used = read(view[offset:])
            append(packet)
            offset += used
    except IndexError:
        return packets, offset, None
    except ValueError as error:
        return packets, offset, str(error)
    except BaseException as panic:
        # The codec panics on invalid UTF-8, and pyo3's PanicException is no Exception.
        if type(panic).__name__ != "PanicException":
            raise
        return packets, offset, "a string is not valid UTF-8"
    return packets, offset, None


def _packet_size(data: bytes | bytearray) -> int:
    """The size of the packet that begins here, in bytes; 0 while its length is not complete (MQTT 5.0, 1.5.5)."""
    length = 0
    for index in range(1, min(len(data), _MAX_LENGTH_BYTES + 1)):
        length |= (data[index] & 0x7F) << (7 * (index - 1))
        if not data[index] & 0x80:
            return 1 + index + length
    return 0
