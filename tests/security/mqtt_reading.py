"""What a stream of bytes from a broker holds, read by the letter of the specification and by none of our codecs.

Only as far as a client needs it to know which messages it may take: packets are cut by their lengths, and PUBLISH is
read strictly (MQTT 5.0, 1.5, 2.1 and 3.3; MQTT 3.1.1, 1.5, 2.2 and 3.3).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

PUBLISH = 3
_CONTINUES, _LOW_BITS = 0x80, 0x7F
_MOST_LENGTH_BYTES = 4


class NotWellFormedError(ValueError):
    """These bytes are no PUBLISH that a broker may send; says why, and what they would be otherwise."""

    def __init__(self, why: str, message: Message | None = None) -> None:
        super().__init__(why)
        self.why = why
        self.message = message


class EndsTooEarlyError(NotWellFormedError):
    """Less is there than a length says."""


@dataclass(frozen=True, slots=True)
class Message:
    """What a PUBLISH says."""

    topic: str
    payload: bytes
    qos: int
    duplicate: bool
    packet_id: int | None


def frames(stream: bytes) -> tuple[list[bytes], int | None]:
    """Cut into packets; also the size of the one that is not complete, None if there is no telling it (bytes)."""
    found: list[bytes] = []
    at = 0
    while at < len(stream):
        length, end = 0, at + 1
        for index in range(_MOST_LENGTH_BYTES):
            if end >= len(stream):
                return found, None
            byte = stream[end]
            end += 1
            length |= (byte & _LOW_BITS) << 7 * index
            if not byte & _CONTINUES:
                break
        else:
            return found, None
        if end + length > len(stream):
            return found, end + length - at
        found.append(stream[at : end + length])
        at = end + length
    return found, 0


def kind(packet: bytes) -> int:
    """The type of a packet."""
    return packet[0] >> 4


def read_publish(packet: bytes, protocol: str) -> Message:
    """Read a PUBLISH.

    Raises:
        NotWellFormedError: no broker may send it.
    """
    flags = packet[0] & 0x0F
    qos, duplicate = flags >> 1 & 3, bool(flags & 8)
    _need(qos <= 2, "QoS 3")
    body = _Body(packet[1:])
    body.variable_integer()
    topic = body.text()
    _need(topic != "", "no topic")
    packet_id = None
    if qos:
        packet_id = body.number(2)
        _need(packet_id != 0, "packet id 0")
    message = Message(topic, body.rest(), qos, duplicate, packet_id)
    try:
        _need("\0" not in topic, "a null character")
        _need("#" not in topic and "+" not in topic, "a topic with wildcards")
        _need(not (duplicate and qos == 0), "DUP at QoS 0")
        if protocol == "5":
            _check_properties(_Body(body.take(body.variable_integer())))
    except NotWellFormedError as error:
        raise NotWellFormedError(error.why, message) from None
    return replace(message, payload=body.rest())


class _Body:
    """Bytes that are read from the front."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def is_empty(self) -> bool:
        return self._at == len(self._data)

    def take(self, size: int) -> bytes:
        if self._at + size > len(self._data):
            raise EndsTooEarlyError("it ends too early")
        self._at += size
        return self._data[self._at - size : self._at]

    def rest(self) -> bytes:
        return self._data[self._at :]

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "big")

    def variable_integer(self) -> int:
        value = 0
        for index in range(_MOST_LENGTH_BYTES):
            byte = self.number(1)
            value |= (byte & _LOW_BITS) << 7 * index
            if not byte & _CONTINUES:
                return value
        raise NotWellFormedError("a length of more than four bytes")

    def text(self) -> str:
        try:
            return self.take(self.number(2)).decode()
        except UnicodeDecodeError:
            raise NotWellFormedError("invalid UTF-8") from None

    def binary(self) -> bytes:
        return self.take(self.number(2))

    def pair(self) -> tuple[str, str]:
        return self.text(), self.text()


_PROPERTIES: dict[int, Callable[[_Body], object]] = {
    0x01: lambda body: _need(body.number(1) <= 1, "a payload format that does not exist"),
    0x02: lambda body: body.number(4),
    0x03: _Body.text,
    0x08: _Body.text,
    0x09: _Body.binary,
    0x0B: lambda body: _need(body.variable_integer() != 0, "subscription identifier 0"),
    0x23: lambda body: _need(body.number(2) != 0, "topic alias 0"),
    0x26: _Body.pair,
}
_REPEATABLE = {0x0B, 0x26}


def _check_properties(body: _Body) -> None:
    seen: set[int] = set()
    while not body.is_empty:
        identifier = body.variable_integer()
        _need(identifier in _PROPERTIES, "a property that PUBLISH does not have")
        _need(identifier not in seen or identifier in _REPEATABLE, "a property twice")
        seen.add(identifier)
        try:
            _PROPERTIES[identifier](body)
        except EndsTooEarlyError:
            raise NotWellFormedError("properties longer than they say") from None


def _need(holds: bool, otherwise: str) -> None:
    if not holds:
        raise NotWellFormedError(otherwise)
