"""Judging what arrived: what was published against what Kafka holds, without any of the service's own code."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tests.brokers import Record
    from tests.devices import Message

_SHOWN = 5


@dataclass(frozen=True, slots=True)
class History:
    """How the records of a Kafka topic compare with the messages published to MQTT.

    `repeats` are the second and later copies. `disordered` lists per MQTT topic the first message that came, repeats
    left out, before one published earlier. `scattered` are MQTT topics in more than one partition.
    """

    lost: list[Message] = field(default_factory=list)
    repeats: list[Record] = field(default_factory=list)
    disordered: list[Message] = field(default_factory=list)
    scattered: list[str] = field(default_factory=list)
    unexpected: list[Record] = field(default_factory=list)

    def problems(self, *, repeats_allowed: int = 0) -> list[str]:
        """What is wrong, in words; empty if every message is there, in order, and repeated no more than allowed."""
        found = []
        for what, items in (
            ("lost", self.lost),
            ("out of order", self.disordered),
            ("in several partitions", self.scattered),
            ("never published", self.unexpected),
        ):
            if items:
                found.append(f"{len(items)} {what}: {list(items[:_SHOWN])}")
        if len(self.repeats) > repeats_allowed:
            found.append(f"{len(self.repeats)} repeats, allowed are {repeats_allowed}: {self.repeats[:_SHOWN]}")
        return found


def check_history(records: Iterable[Record], published: Iterable[Message]) -> History:
    """Compare records (in offset order per partition, their keys the MQTT topics) with messages in publish order.

    The messages must differ from each other.
    """
    place: dict[Message, int] = {}
    for message in published:
        if message in place:
            raise ValueError(f"{message} was published twice: its copies could not be told apart")
        place[message] = len(place)
    history = History()
    seen: set[Message] = set()
    latest: dict[str, int] = {}
    partitions: dict[str, set[int]] = {}
    for record in records:
        message = ((record.key or b"").decode(), record.value or b"")
        position = place.get(message)
        if position is None:
            history.unexpected.append(record)
            continue
        topic = message[0]
        partitions.setdefault(topic, set()).add(record.partition)
        if message in seen:
            history.repeats.append(record)
            continue
        seen.add(message)
        if position < latest.get(topic, -1):
            history.disordered.append(message)
        latest[topic] = max(position, latest.get(topic, -1))
    history.lost.extend(message for message in place if message not in seen)
    history.scattered.extend(topic for topic, used in partitions.items() if len(used) > 1)
    return history


def java_partition(key: bytes, partitions: int) -> int:
    """The partition Kafka's Java client chooses for a key: its murmur2, made positive, modulo the partitions."""
    return (murmur2(key) & 0x7FFFFFFF) % partitions


def murmur2(data: bytes) -> int:
    """Kafka's murmur2 (org.apache.kafka.common.utils.Utils), as an unsigned number."""
    mask, factor, shift = 0xFFFFFFFF, 0x5BD1E995, 24
    value = 0x9747B28C ^ len(data)
    whole = len(data) & ~3
    for start in range(0, whole, 4):
        word = int.from_bytes(data[start : start + 4], "little") * factor & mask
        word = (word ^ word >> shift) * factor & mask
        value = (value * factor & mask) ^ word
    if rest := data[whole:]:
        value = (value ^ int.from_bytes(rest, "little")) * factor & mask
    value = (value ^ value >> 13) * factor & mask
    return value ^ value >> 15
