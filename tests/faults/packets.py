"""As much of MQTT 5 and 3.1.1 as a tap on the wire needs, independent of the service's own code and codecs."""

from __future__ import annotations

from dataclasses import dataclass

CONNECT, CONNACK, PUBLISH, PUBACK, PUBREC, SUBACK, DISCONNECT = 1, 2, 3, 4, 5, 9, 14
_MQTT_5 = 5
_QOS = 0b0110
_DUP = 0b1000


@dataclass(frozen=True, slots=True)
class Connect:
    """Who connects, and with which version: 5, or 4 for 3.1.1."""

    level: int
    client_id: str


@dataclass(frozen=True, slots=True)
class Publish:
    """A message; `packet_id` is 0 at QoS 0."""

    topic: str
    payload: bytes
    qos: int
    duplicate: bool
    packet_id: int


class Framer:
    """Cuts a stream of bytes into whole packets."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[bytes]:
        """The packets that are complete by now."""
        data = self._rest + data
        packets, start = [], 0
        while (size := _size(data, start)) and start + size <= len(data):
            packets.append(data[start : start + size])
            start += size
        self._rest = data[start:]
        return packets


def kind(packet: bytes) -> int:
    """The packet type."""
    return packet[0] >> 4


def parse_connect(packet: bytes) -> Connect:
    """Decode a CONNECT as far as the client id."""
    body = _body(packet)
    name, at = _string(body, 0)
    if name != "MQTT":
        raise ValueError(f"not MQTT: {name}")
    level, at = body[at], at + 4  # and the flags, and the keep alive
    if level == _MQTT_5:
        at = _past_properties(body, at)
    return Connect(level, _string(body, at)[0])


def parse_publish(packet: bytes, level: int) -> Publish:
    """Decode a PUBLISH."""
    body, qos = _body(packet), (packet[0] & _QOS) >> 1
    topic, at = _string(body, 0)
    packet_id = 0
    if qos:
        packet_id, at = int.from_bytes(body[at : at + 2], "big"), at + 2
    if level == _MQTT_5:
        at = _past_properties(body, at)
    return Publish(topic, body[at:], qos, bool(packet[0] & _DUP), packet_id)


def parse_packet_id(packet: bytes) -> int:
    """The packet id of a PUBACK, PUBREC or SUBACK."""
    return int.from_bytes(_body(packet)[:2], "big")


def connack(level: int, code: int) -> bytes:
    """A CONNACK that refuses, with a code of that version."""
    return bytes([CONNACK << 4, 3, 0, code, 0]) if level == _MQTT_5 else bytes([CONNACK << 4, 2, 0, code])


def disconnect(code: int) -> bytes:
    """A DISCONNECT of an MQTT 5 server."""
    return bytes([DISCONNECT << 4, 2, code, 0])


def _size(data: bytes, start: int) -> int:
    """The size of the packet that starts here; 0 while its length is not complete."""
    length = shift = 0
    for at in range(start + 1, min(start + 5, len(data))):
        length |= (data[at] & 0x7F) << shift
        if not data[at] & 0x80:
            return at + 1 - start + length
        shift += 7
    return 0


def _body(packet: bytes) -> bytes:
    at = 1
    while packet[at] & 0x80:
        at += 1
    return packet[at + 1 :]


def _string(body: bytes, at: int) -> tuple[str, int]:
    end = at + 2 + int.from_bytes(body[at : at + 2], "big")
    return body[at + 2 : end].decode(), end


def _past_properties(body: bytes, at: int) -> int:
    length = shift = 0
    while True:
        length |= (body[at] & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if not body[at - 1] & 0x80:
            return at + length
