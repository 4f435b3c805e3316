"""Streams of bytes as a broker might send them, and some that none may: valid packets of every type, mutated."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import mqtt5

from tests.fakebroker import PINGRESP, Dialect, packet, pubrel

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

MOST_LENGTH = 268_435_455
_MUTATED = 0.3  # of the packets
_MOST_PACKETS = 12
_TOPICS = ("a", "a/b", "plant/hall-1/temperature", "größe/\u2603/\U0001f40d", "/", "$SYS/x", "x" * 300)
# A user property, a subscription identifier, a payload format, a topic alias, a content type, and none.
_PROPERTIES = (b"\x26\0\0\0\0", b"\x0b\x01", b"\x01\x01", b"\x23\0\x01", b"\x03\0\x01a", b"\x7f\0")
_BAD_TEXT = (b"\xff\xfe", b"\xc0\x80", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"a\0b", b"\xe2\x82")


@dataclass(slots=True)
class Stream:
    """Bytes, how many of the packets in them are mutated, and how many bytes before the first that is (or all)."""

    data: bytes = b""
    mutated: int = 0
    sound: int = 0
    kinds: list[str] = field(default_factory=list)  # what was done, to be told when something fails


def draw_stream(rng: random.Random, protocol: Any) -> Stream:
    """Draw one connection's worth of packets; most streams begin as a broker's do."""
    packets = _Packets(rng, protocol)
    drawn = [packets.connack()] if rng.random() < 0.95 else []
    drawn += [packets.any() for _ in range(rng.randint(1, _MOST_PACKETS))]
    stream, is_sound, previous = Stream(), True, b""
    for index, whole in enumerate(drawn):
        data = whole
        # The first is mutated seldom: behind a CONNACK that is refused nothing is looked at.
        if rng.random() < (_MUTATED if index else 0.05):
            name, mutate = rng.choice(_MUTATIONS)
            data = mutate(rng, whole, previous)
            if data != whole:
                stream.mutated += 1
                stream.kinds.append(f"{name} of packet {index}")
                is_sound = False
        stream.data += data
        if is_sound:
            stream.sound = len(stream.data)
        previous = whole
    return stream


class _Packets:
    """Valid packets."""

    def __init__(self, rng: random.Random, protocol: Any) -> None:
        self._rng = rng
        self._five = protocol == "5"
        self._speak = Dialect(protocol)

    def any(self) -> bytes:
        rng = self._rng
        if rng.random() < 0.7:
            return self.publish()
        return rng.choice(self._others)()

    @property
    def _others(self) -> list[Callable[[], bytes]]:
        rng, speak, identifier = self._rng, self._speak, self._packet_id
        both: list[Callable[[], bytes]] = [
            self.connack,
            lambda: pubrel(identifier()),
            lambda: speak.suback(rng.randint(1, 3), rng.choice([0, 1, 2, 0x80])),
            lambda: speak.unsuback(rng.randint(1, 3), 0),
            lambda: PINGRESP,
            # What only a client sends.
            lambda: b"\xc0\x00",
            lambda: packet(0x40, identifier().to_bytes(2, "big")),
            lambda: packet(0x50, identifier().to_bytes(2, "big")),
            lambda: packet(0x70, identifier().to_bytes(2, "big")),
        ]
        return [*both, *self._others_of_5] if self._five else both

    @property
    def _others_of_5(self) -> list[Callable[[], bytes]]:
        rng, identifier, properties = self._rng, self._packet_id, self._user_properties
        return [
            lambda: mqtt5.DisconnectPacket(
                reason_code=mqtt5.DisconnectReasonCode(rng.choice([0, 0x81, 0x8B, 0x8E, 0x97])),
                reason_str=rng.choice([None, "why"]),
                user_properties=properties(),
            ).write(),
            lambda: mqtt5.AuthPacket(authentication_method="m", authentication_data=b"d").write(),
            lambda: mqtt5.PubRelPacket(identifier(), reason_str="why", user_properties=properties()).write(),
            lambda: mqtt5.SubAckPacket(
                rng.randint(1, 3), [mqtt5.SubAckReasonCode(rng.choice([0, 1, 2, 0x80, 0x87]))], reason_str="why"
            ).write(),
            lambda: self._speak.unsuback(rng.randint(1, 3), rng.choice([0, 17, 0x80])),
            lambda: mqtt5.PubAckPacket(identifier(), reason_str="why").write(),
            lambda: mqtt5.ConnectPacket("c", username="u", password=b"p").write(),
            lambda: mqtt5.SubscribePacket(1, [mqtt5.TopicFilter("a")]).write(),
            lambda: mqtt5.UnsubscribePacket(1, ["a"]).write(),
        ]

    def connack(self) -> bytes:
        rng = self._rng
        if not self._five or rng.random() < 0.3:
            return self._speak.connack(session_present=rng.random() < 0.5)
        return mqtt5.ConnAckPacket(
            session_present=rng.random() < 0.5,
            session_expiry_interval=rng.choice([None, 0, 60, 0xFFFF_FFFF]),
            assigned_client_id=rng.choice([None, "assigned"]),
            server_keep_alive=rng.choice([None, 60, 0xFFFF]),
            receive_max=rng.choice([1, 65_535]),
            max_packet_size=rng.choice([None, 1_000_000]),
            subscription_id_available=rng.random() < 0.8,
            user_properties=self._user_properties(),
        ).write()

    def publish(self) -> bytes:
        rng = self._rng
        qos = rng.choice([0, 1, 1, 1, 2] if self._five else [0, 1, 1, 1])
        topic, payload = rng.choice(_TOPICS), rng.randbytes(self._payload_size())
        duplicate = bool(qos) and rng.random() < 0.2
        if not self._five or rng.random() < 0.3:
            packet_id = self._packet_id() if qos else 0
            return self._speak.publish(topic, payload, qos=qos, packet_id=packet_id, duplicate=duplicate)
        return mqtt5.PublishPacket(
            topic,
            payload,
            qos=mqtt5.QoS(qos),
            packet_id=self._packet_id() if qos else None,
            duplicate=duplicate,
            retain=rng.random() < 0.2,
            message_expiry_interval=rng.choice([None, 1, 0xFFFF_FFFF]),
            content_type=rng.choice([None, "text/plain"]),
            response_topic=rng.choice([None, "answers"]),
            correlation_data=rng.choice([None, b"\0\xff"]),
            subscription_ids=rng.choice([None, [1], [1, MOST_LENGTH]]),
            user_properties=self._user_properties(),
        ).write()

    def _payload_size(self) -> int:
        rng = self._rng
        sizes = (0, 1, 100, 127, 128, 1_000, 16_383, 16_384)
        return rng.choice(sizes) if rng.random() < 0.995 else rng.choice([140_000, 300_000])

    def _packet_id(self) -> int:
        return self._rng.choice([self._rng.randint(1, 5), self._rng.randint(1, 65_535), 65_535])

    def _user_properties(self) -> list[tuple[str, str]] | None:
        rng = self._rng
        chance = rng.random()
        if chance < 0.8:
            return None
        count = rng.randint(1, 5) if chance < 0.99 else 2_000
        return [("k" * rng.randint(0, 20), "größe")] * count


def encoded(length: int, size: int = 0) -> bytes:
    """A length as MQTT writes it, in at least so many bytes: more than it needs are not allowed, and bits that lie."""
    written = bytearray()
    while True:
        length, low = divmod(length, 128)
        more = bool(length) or len(written) + 1 < size
        written.append(low | 0x80 if more else low)
        if not more:
            return bytes(written)


def body_of(whole: bytes) -> bytes:
    """What follows the length."""
    at = 1
    while whole[at] & 0x80:
        at += 1
    return whole[at + 1 :]


def _flip_bits(rng: random.Random, whole: bytes, previous: bytes) -> bytes:
    del previous
    data = bytearray(whole)
    # Near the beginning is where the meaning is.
    most = len(data) if rng.random() < 0.3 else min(len(data), 24)
    for _turn in range(rng.choice([1, 1, 2, 8])):
        data[rng.randrange(most)] ^= 1 << rng.randrange(8)
    return bytes(data)


def _set_bytes(rng: random.Random, whole: bytes, previous: bytes) -> bytes:
    del previous
    data = bytearray(whole)
    for _turn in range(rng.choice([1, 2, 4])):
        data[rng.randrange(min(len(data), 40))] = rng.choice([0, 1, 0x7F, 0x80, 0xFE, 0xFF, rng.randrange(256)])
    return bytes(data)


def _lie_about_length(rng: random.Random, whole: bytes, _: bytes) -> bytes:
    body = body_of(whole)
    near = max(0, len(body) + rng.choice([-2, -1, 1, 2, 5]))
    length = rng.choice([near, near, 0, 1, 127, 128, 16_384, rng.randrange(2_097_152), MOST_LENGTH])
    return whole[:1] + encoded(length) + body


def _lengthen_length(rng: random.Random, whole: bytes, _: bytes) -> bytes:
    body = body_of(whole)
    return whole[:1] + encoded(len(body), rng.choice([2, 3, 4, 5, 6])) + body


def _cut(rng: random.Random, whole: bytes, _: bytes) -> bytes:
    return whole[: rng.randrange(len(whole))]


def _cut_body(rng: random.Random, whole: bytes, _: bytes) -> bytes:
    body = body_of(whole)
    return packet(whole[0], body[: rng.randrange(len(body) + 1)])


def _splice(rng: random.Random, whole: bytes, previous: bytes) -> bytes:
    body = body_of(whole)
    at = rng.randrange(min(len(body), 40) + 1)
    piece = previous[: rng.randint(1, 40)] if previous and rng.random() < 0.5 else rng.randbytes(rng.randint(1, 40))
    return packet(whole[0], body[:at] + piece + body[at + rng.choice([0, len(piece)]) :])


def _swap_with_previous(_: random.Random, whole: bytes, previous: bytes) -> bytes:
    return whole + previous


def _repeat(rng: random.Random, whole: bytes, _: bytes) -> bytes:
    return whole * rng.randint(2, 4)


def _bad_text(rng: random.Random, whole: bytes, _: bytes) -> bytes:
    body, bad = body_of(whole), rng.choice(_BAD_TEXT)
    size = int.from_bytes(body[:2], "big")
    if rng.random() < 0.5 or whole[0] >> 4 != 3 or size < len(bad):
        at = rng.randrange(min(len(body), 60) + 1)
        return packet(whole[0], body[:at] + bad + body[at + len(bad) :])
    return packet(whole[0], body[:2] + bad + body[2 + len(bad) :])


def _many_properties(rng: random.Random, whole: bytes, _: bytes) -> bytes:
    """A PUBLISH with a great many properties, some of them twice, or with a length of them that lies."""
    del whole
    one = rng.choice(_PROPERTIES)
    properties = one * rng.choice([1, 2, 1_000, 20_000])
    said = len(properties) + rng.choice([0, 0, 0, -1, 1, 1_000])
    return packet(0x30, b"\x00\x01a" + encoded(max(0, said)) + properties + b"payload")


def _noise(rng: random.Random, _: bytes, __: bytes) -> bytes:
    return rng.randbytes(rng.randint(1, 200))


def _other_type(rng: random.Random, whole: bytes, _: bytes) -> bytes:
    return bytes([rng.randrange(256)]) + whole[1:]


_MUTATIONS: tuple[tuple[str, Callable[[random.Random, bytes, bytes], bytes]], ...] = (
    ("flipped bits", _flip_bits),
    ("flipped bits", _flip_bits),
    ("set bytes", _set_bytes),
    ("set bytes", _set_bytes),
    ("a wrong length", _lie_about_length),
    ("a long length", _lengthen_length),
    ("truncation", _cut),
    ("a short body", _cut_body),
    ("a splice", _splice),
    ("the previous packet again", _swap_with_previous),
    ("repetition", _repeat),
    ("invalid text", _bad_text),
    ("many properties", _many_properties),
    ("noise", _noise),
    ("another type", _other_type),
)
