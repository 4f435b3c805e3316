"""MQTT 5: the `mqtt5` codec on an asyncio.BufferedProtocol.

One read from the socket becomes one call to the receiver with all its messages; acknowledgements go out as one write
per call. Nothing here awaits but the few exchanges of connecting, subscribing and leaving.
"""

from __future__ import annotations

import asyncio
from itertools import groupby, takewhile
from operator import attrgetter
from typing import TYPE_CHECKING, Any, cast

import mqtt5

from server.core.failures import SESSION_TAKEN_OVER, UNSUPPORTED_PROTOCOL_VERSION, mqtt_reason, subscription_refused
from server.mqtt import connection as base
from server.mqtt.connection import REFUSED, SLICE_BYTES, SLICE_PACKETS, BaseConnection
from server.mqtt.dial import SHUTDOWN_SECONDS, Dialer
from server.mqtt.port import ConnectionEndedError, Ended, Granted, SubscriptionRefusedError
from server.mqtt.readbuffer import SharedBuffer
from server.mqtt.release import Release
from server.ticks import Ticks

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from server.core.acks import Fingerprint
    from server.core.subscription import Subscription
    from server.mqtt.port import Message, Receiver, SessionRequest

# How a broker that speaks only 3.1.1 refuses: its CONNACK with return code 1. The codec calls it malformed.
_CONNACK_OF_311 = bytes.fromhex("20020001")
_TOPIC = attrgetter("topic")
_PACKET_ID = attrgetter("packet_id")


class Connector:
    """Makes MQTT 5 connections, of one event loop."""

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
        await connection.connect(self._dialer.open(connection, request.broker))
        return connection


class Connection(BaseConnection, asyncio.BufferedProtocol):
    """One MQTT 5 connection."""

    def __init__(self, request: SessionRequest, receiver: Receiver, shared: SharedBuffer, ticks: Ticks) -> None:
        super().__init__(request, receiver, shared, ticks)
        self._transport: asyncio.Transport | None = None
        self._room = 0  # how many bytes the next read may have
        self._answers: dict[int, asyncio.Future[list[int]]] = {}
        self._next_packet_id = 1
        self._release = Release(request.unreleased)
        self._all_written: asyncio.Future[None] | None = None
        self._deadline: asyncio.TimerHandle | None = None
        self._consumers: dict[type, Callable[[Any], None]] = {
            mqtt5.ConnAckPacket: self._on_connack,
            mqtt5.PubRelPacket: self._on_pubrel,
            mqtt5.SubAckPacket: self._on_answer,
            mqtt5.UnsubAckPacket: self._on_answer,
            mqtt5.PingRespPacket: self._on_pingresp,
            mqtt5.DisconnectPacket: self._on_disconnect,
        }

    # --- asyncio.BufferedProtocol -----------------------------------------------------------------------------------

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

    def get_buffer(self, sizehint: int) -> memoryview:
        """Where the next read goes."""
        del sizehint
        room = self._reads.room()
        self._room = len(room)
        return room

    def buffer_updated(self, nbytes: int) -> None:
        """Decode all packets of this read, and hand their messages on together."""
        if self._ending is None:
            self.heard(nbytes)
            if nbytes == self._room:
                self.give_way()

    def _take_in(self, data: memoryview) -> None:
        if self._granted is None and data[: len(_CONNACK_OF_311)] == _CONNACK_OF_311:
            said = "this broker speaks MQTT 3.1.1"
            self._end(Ended(mqtt_reason(UNSUPPORTED_PROTOCOL_VERSION, said), version_refused=True))
            return
        if self._granted is None and self.is_foreign(data):
            return
        offset, total = 0, len(data)
        while offset < total and not self._reading_paused:
            packets, end, malformed = decode(data, offset)
            used = end - offset
            self._dispatch(packets, used)
            offset = end
            if self._ending is not None:
                return
            if malformed is not None:
                self.malformed(data[offset:], malformed)
                return
            if len(packets) < SLICE_PACKETS and used < SLICE_BYTES:
                break
            self._receiver.receiving(total - offset)
        self._receiver.all_received()
        if offset < total:
            self._reads.keep(data[offset:])

    def _dispatch(self, packets: list[Any], used: int) -> None:
        """Hand on what was decoded from `used` bytes: messages together, other packets in their place between them."""
        publish = mqtt5.PublishPacket
        messages: list[Message] = [packet for packet in packets if type(packet) is publish]
        if len(messages) == len(packets):
            if messages:
                self._take(messages, used)
            return
        for are_messages, run in groupby(packets, lambda packet: type(packet) is publish):
            if self._ending is not None:
                return
            if are_messages:
                messages = list(run)
                self._take(messages, sum(len(each.topic) + len(each.payload) for each in messages))
            else:
                for packet in run:
                    self._consume(packet)

    def _take(self, messages: list[Message], size: int) -> None:
        """Hand messages on, up to one that no broker may send and the codec lets pass."""
        if all(map(_TOPIC, messages)) and 0 not in map(_PACKET_ID, messages):
            self.hand_over(messages, size)
            return
        sound = list(takewhile(lambda each: each.topic and each.packet_id != 0, messages))
        if sound:
            self.hand_over(sound, sum(len(each.topic) + len(each.payload) for each in sound))
        bad = cast("mqtt5.PublishPacket", messages[len(sound)])
        if bad.packet_id == 0:
            self.malformed(bad.write(), "its packet id is 0")
        else:
            self.refuse_packet(f"topic alias {bad.topic_alias}, though we allow none")

    def eof_received(self) -> bool:
        """Let the transport close."""
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell everyone who waits."""
        if self._deadline is not None:
            self._deadline.cancel()
        self.closed(self.lost(exc))

    # --- what the forwarder asks for --------------------------------------------------------------------------------

    def acknowledge(self, messages: Sequence[Message]) -> None:
        """Write PUBACK or PUBREC for these, in this order; only while the connection is open."""
        at_qos_1: list[int] = []
        for message in messages:
            packet_id = message.packet_id
            if packet_id is None:
                continue
            if message.qos == 1:
                at_qos_1.append(packet_id)
            else:
                self._release.due(packet_id, message)
        self._write(self._release.pubrecs(), pubacks_for=at_qos_1)

    @property
    def withheld(self) -> Sequence[tuple[int, Fingerprint]]:
        """Packet ids whose acknowledgement was asked for and is not written yet, and what they delivered."""
        return self._release.withheld

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
        codes = {}
        for topic_filter, answer in waiting:
            answered = await self._answer(answer, "SUBACK")
            if len(answered) != 1:
                raise ConnectionEndedError(self.refuse_packet(f"a SUBACK of {len(answered)} codes for 1 filter"))
            codes[topic_filter] = answered[0]
        refused = {topic_filter: code for topic_filter, code in codes.items() if code >= REFUSED}
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

    # --- packets ----------------------------------------------------------------------------------------------------

    def _consume(self, packet: object) -> None:
        consumer = self._consumers.get(type(packet))
        if consumer is None:
            self.refuse_packet(f"{type(packet).__name__} is not for clients")
        else:
            consumer(packet)

    def _on_connack(self, packet: mqtt5.ConnAckPacket) -> None:
        if self._granted is not None:
            self.refuse_packet("a second CONNACK")
            return
        code = int(packet.reason_code)
        if code >= REFUSED:
            self._end(Ended(mqtt_reason(code, packet.reason_str), version_refused=code == UNSUPPORTED_PROTOCOL_VERSION))
            return
        if packet.server_keep_alive is not None:
            self._keep_alive = packet.server_keep_alive
        asked = self._request
        if not packet.session_present:
            self._release.forget()
        self.accept(
            Granted(
                protocol="5",
                session_present=packet.session_present,
                client_id=packet.assigned_client_id or asked.client_id,
                session_expiry=(
                    asked.session_expiry if packet.session_expiry_interval is None else packet.session_expiry_interval
                ),
                subscription_identifiers=packet.subscription_id_available,
            )
        )

    def _on_pubrel(self, packet: mqtt5.PubRelPacket) -> None:
        self._write(self._release.pubcomp(packet.packet_id) + self._release.pubrecs())
        if self._all_written is not None and self._release.is_empty and not self._all_written.done():
            self._all_written.set_result(None)

    def _on_answer(self, packet: mqtt5.SubAckPacket | mqtt5.UnsubAckPacket) -> None:
        answer = self._answers.pop(packet.packet_id, None)
        if answer is not None and not answer.done():
            answer.set_result([int(code) for code in packet.reason_codes])

    def _on_pingresp(self, _packet: mqtt5.PingRespPacket) -> None:
        self.take_pingresp()

    def _on_disconnect(self, packet: mqtt5.DisconnectPacket) -> None:
        code = int(packet.reason_code)
        self._end(Ended(mqtt_reason(code, packet.reason_str), takeover=code == SESSION_TAKEN_OVER))

    # --- the transport ----------------------------------------------------------------------------------------------

    @property
    def _is_connected(self) -> bool:
        return self._transport is not None

    def _send(self, data: bytes) -> None:
        if self._transport is not None:
            self._transport.write(data)

    def _stop_reading(self) -> None:
        if self._transport is not None:
            self._transport.pause_reading()

    def _start_reading(self) -> None:
        if self._transport is not None:
            self._transport.resume_reading()

    def _end(self, ended: Ended) -> None:
        self._send_all()
        self._ending = self._ending or ended
        if self._transport is not None and self._deadline is None and not self.ended.done():
            self._deadline = self._loop.call_later(SHUTDOWN_SECONDS, self._transport.abort)
            self._transport.close()

    def _abort(self, ended: Ended) -> None:
        self._ending = self._ending or ended
        if self._transport is not None:
            self._transport.abort()
        else:
            self.closed(ended)

    def _disconnect_for(self, code: int) -> bytes:
        return mqtt5.DisconnectPacket(reason_code=mqtt5.DisconnectReasonCode(code)).write()

    async def _acknowledgements_written(self, within: float) -> None:
        if not self._release.is_empty:
            self._all_written = self._loop.create_future()
            await self.or_ended(self._all_written, within)

    # --- exchanges --------------------------------------------------------------------------------------------------

    def _expect_answer(self) -> tuple[int, asyncio.Future[list[int]]]:
        packet_id = self._next_packet_id
        self._next_packet_id = packet_id % 0xFFFF + 1
        answer: asyncio.Future[list[int]] = self._loop.create_future()
        self._answers[packet_id] = answer
        return packet_id, answer

    async def _answer(self, answer: asyncio.Future[list[int]], name: str) -> list[int]:
        try:
            async with asyncio.timeout(base.SUBACK_TIMEOUT_SECONDS):
                return await self.answered(answer)
        except TimeoutError:
            raise self.no_answer(name) from None


def decode(data: memoryview, offset: int) -> tuple[list[Any], int, str | None]:
    """A slice of the packets that are complete, from `offset` on.

    Returns them, where they end, and what is wrong with the one after them, if anything is.
    """
    packets: list[Any] = []
    read, append = mqtt5.read, packets.append
    enough = min(len(data), offset + SLICE_BYTES)
    try:
        for _ in range(SLICE_PACKETS):
            if offset >= enough:
                break
            packet, used = read(data[offset:])
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
