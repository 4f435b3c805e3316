"""A blocking MQTT 5 connection for publishers and for preparing sessions: as few system calls and objects as possible.

The codec does what happens once or seldom. Acknowledgements, of which there is one or more a message, are read many at
a time as the four bytes each that brokers send for a success.
"""

from __future__ import annotations

import select
import socket
import ssl
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import mqtt5
import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    from loadtest.endpoints import MqttEndpoint

KEEP_ALIVE = 600
ANSWER_TIMEOUT = 30.0
SESSION_EXPIRY = 24 * 3600
# 65,535 is the protocol's default, which the codec leaves out, and then Mosquitto keeps 20 in flight.
RECEIVE_MAXIMUM = 65_534
_READ_BYTES = 256 * 1024
_QUICK_ACK: int | None = getattr(socket, "TCP_QUICKACK", None)  # Linux only

_PUBACK, _PUBREC, _PUBREL, _PUBCOMP = 0x40, 0x50, 0x62, 0x70
_PUBLISH_QOS1 = 0x32  # without the bits that say redelivered and retained


class MqttError(ConnectionError):
    """The broker closed the connection, refused something, or said what it must not say."""


class Connection:
    """One connection. Not thread-safe; every call may block until the broker takes or answers something."""

    def __init__(self, endpoint: MqttEndpoint, client_id: str = "", **options: Any) -> None:
        """Connect; `options` are those of mqtt5.ConnectPacket."""
        self._socket = endpoint.open()
        self._rest = b""
        self.messages: list[mqtt5.PublishPacket] = []
        self.acknowledged = 0
        self.write(mqtt5.ConnectPacket(client_id, keep_alive=KEEP_ALIVE, **options).write())
        self.connack: mqtt5.ConnAckPacket = self._answer(mqtt5.ConnAckPacket)
        if self.connack.reason_code != mqtt5.ConnAckReasonCode.SUCCESS:
            raise MqttError(f"CONNACK {self.connack.reason_code}")

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send all of it."""
        self._socket.sendall(data)

    def subscribe(self, pattern: str, qos: int) -> None:
        """Subscribe and wait for the broker's consent."""
        self.write(mqtt5.SubscribePacket(1, [mqtt5.TopicFilter(pattern, max_qos=mqtt5.QoS(qos))]).write())
        answer: mqtt5.SubAckPacket = self._answer(mqtt5.SubAckPacket)
        if int(answer.reason_codes[0]) >= 0x80:
            raise MqttError(f"SUBACK {answer.reason_codes[0]}")

    def read(self, timeout: float | None = 0.0) -> bool:
        """Take in what has arrived, waiting so many seconds for it (None: for ever); returns whether anything came."""
        if timeout != 0 and _QUICK_ACK is not None:
            # Mosquitto leaves Nagle's algorithm on: its next acknowledgements wait until TCP has acknowledged the last,
            # which takes 40 ms while there is nothing to write.
            self._socket.setsockopt(socket.IPPROTO_TCP, _QUICK_ACK, 1)
        if not self._readable(timeout):
            return False
        data = self._socket.recv(_READ_BYTES)
        if not data:
            raise MqttError("the broker closed the connection")
        data = self._rest + data if self._rest else data
        whole = len(data) & ~3
        acks = np.frombuffer(data, dtype=np.uint8, count=whole).reshape(-1, 4)
        kinds = acks[:, 0]
        confirmed = int(np.count_nonzero((kinds == _PUBACK) | (kinds == _PUBCOMP)))
        received = acks[kinds == _PUBREC]
        if whole and confirmed + len(received) == len(acks) and bool((acks[:, 1] == 2).all()):
            self._rest = data[whole:]
            self.acknowledged += confirmed
            if len(received):
                releases = received.copy()
                releases[:, 0] = _PUBREL
                self.write(releases.tobytes())
        else:
            self._decode(data)
        return True

    def take(self, messages: int) -> None:
        """Take so many QoS 1 messages and acknowledge each, a read at a time, without looking at what they say.

        It stands for the fastest reader there can be, hence not `read`: with the codec's messages it gets 8 % less of
        Mosquitto. It must be the first call on the connection.
        """
        # Some may have come along with CONNACK.
        taken, data = len(self.messages), self._rest
        acks = bytearray().join(
            [mqtt5.PubAckPacket(each.packet_id).write() for each in self.messages if each.packet_id]
        )
        while True:
            self.write(acks)
            if taken >= messages:
                break
            if not self._readable(ANSWER_TIMEOUT):
                raise MqttError(f"nothing more within {ANSWER_TIMEOUT:g} s, after {taken} of {messages} messages")
            received = self._socket.recv(_READ_BYTES)
            if not received:
                raise MqttError("the broker closed the connection")
            data, acks = _acknowledgements(data + received)
            taken += len(acks) // 4

    def disconnect(self) -> None:
        """Say goodbye, and wait until the broker has closed, so that nothing written before is lost."""
        self.write(mqtt5.DisconnectPacket().write())
        deadline = time.monotonic() + ANSWER_TIMEOUT
        while time.monotonic() < deadline and self._readable(1.0):
            if not self._socket.recv(_READ_BYTES):
                break
        self.close()

    def close(self) -> None:
        """Close the socket without a word."""
        self._socket.close()

    def _readable(self, timeout: float | None) -> bool:
        if isinstance(self._socket, ssl.SSLSocket) and self._socket.pending():
            return True
        return bool(select.select([self._socket], [], [], timeout)[0])

    def _decode(self, data: bytes) -> list[Any]:
        """Take packets as they come; returns those that answer something other than a message."""
        answers: list[Any] = []
        view, used = memoryview(data), 0
        while used < len(data):
            try:
                packet, size = mqtt5.read(view[used:])
            except IndexError:
                break
            used += size
            match packet:
                case mqtt5.PubAckPacket() | mqtt5.PubCompPacket() | mqtt5.PubRecPacket():
                    self._confirmation(packet)
                case mqtt5.PublishPacket():
                    self.messages.append(packet)
                case mqtt5.DisconnectPacket():
                    raise MqttError(f"the broker said DISCONNECT: {packet.reason_code}")
                case _:
                    answers.append(packet)
        self._rest = data[used:]
        return answers

    def _confirmation(self, packet: mqtt5.PubAckPacket | mqtt5.PubCompPacket | mqtt5.PubRecPacket) -> None:
        if int(packet.reason_code) >= 0x80:
            raise MqttError(f"the broker refused a message: {packet.reason_code}")
        if isinstance(packet, mqtt5.PubRecPacket):
            self.write(mqtt5.PubRelPacket(packet.packet_id).write())
        else:
            self.acknowledged += 1

    def _answer(self, kind: type[Any]) -> Any:
        deadline = time.monotonic() + ANSWER_TIMEOUT
        while self._readable(deadline - time.monotonic()):
            data = self._socket.recv(_READ_BYTES)
            if not data:
                raise MqttError(f"the broker closed the connection instead of sending {kind.__name__}")
            for packet in self._decode(self._rest + data):
                if isinstance(packet, kind):
                    return packet
        raise MqttError(f"no {kind.__name__} within {ANSWER_TIMEOUT:g} s")


def _acknowledgements(data: bytes) -> tuple[bytes, bytearray]:
    """PUBACKs for all whole PUBLISH packets at QoS 1 in `data`, and what is left of it."""
    acks, begin, length = bytearray(), 0, len(data)
    while begin + 5 <= length:  # the most that a packet's kind and its length take
        body = begin + 2
        size, shift = data[begin + 1] & 127, 7
        while data[body - 1] & 128:
            size |= (data[body] & 127) << shift
            body, shift = body + 1, shift + 7
        if body + size > length:
            break
        if data[begin] & 0xF6 != _PUBLISH_QOS1:
            raise MqttError(f"a packet that is no message: {data[begin]:#04x}")
        packet_id = body + 2 + (data[body] << 8 | data[body + 1])
        acks += b"\x40\x02" + data[packet_id : packet_id + 2]
        begin = body + size
    return data[begin:], acks


@contextmanager
def connected(endpoint: MqttEndpoint, client_id: str = "", **options: Any) -> Iterator[Connection]:
    """Open a connection and leave it with DISCONNECT; `options` are those of mqtt5.ConnectPacket."""
    connection = Connection(endpoint, client_id, **options)
    try:
        yield connection
        connection.disconnect()
    finally:
        connection.close()


def create_session(endpoint: MqttEndpoint, client_id: str, pattern: str, qos: int) -> None:
    """Make a session that queues what matches, for a forwarder that does not subscribe by itself."""
    with connected(endpoint, client_id, clean_start=True, session_expiry_interval=SESSION_EXPIRY) as connection:
        connection.subscribe(pattern, qos)


@contextmanager
def last_connection(endpoint: MqttEndpoint, client_id: str) -> Iterator[Connection]:
    """Resume a session, with as much in flight as the protocol allows; it ends with the connection."""
    options = {"clean_start": False, "session_expiry_interval": 0, "receive_max": RECEIVE_MAXIMUM}
    with connected(endpoint, client_id, **options) as connection:
        yield connection


def publish_one(endpoint: MqttEndpoint, topic: str, payload: bytes) -> None:
    """Publish a message at QoS 1."""
    with connected(endpoint, clean_start=True) as connection:
        connection.write(mqtt5.PublishPacket(topic, payload, qos=mqtt5.QoS.AT_LEAST_ONCE, packet_id=1).write())
        while not connection.acknowledged:
            if not connection.read(ANSWER_TIMEOUT):
                raise MqttError("no PUBACK")
