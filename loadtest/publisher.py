"""A publisher: a process of its own that sends its share of a workload.

Packets are made by the codec before the start; sending one means writing its packet id, number and time into the bytes
that are there. At a paced rate each message is sent when it is due, alone, as from devices that know nothing of each
other, and its time is when it was due: so what a late publisher (or one the broker holds up) delays is seen as delay.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import mqtt5

from loadtest.mqtt import MqttError, connected
from loadtest.payload import HEADER
from loadtest.sizes import Sizes
from loadtest.workload import topic_name

if TYPE_CHECKING:
    from multiprocessing.connection import Connection as Pipe

    from loadtest.endpoints import MqttEndpoint
    from loadtest.mqtt import Connection
    from loadtest.workload import Workload

# In flight at QoS 1 and 2. Enough to keep a broker busy; some keep what is in flight in a list.
WINDOW = 2_000
# How many packets are prepared: as many as sizes are drawn; and bytes, unless the topics need more.
PREPARED = 2_000
PREPARED_BYTES = 32_000_000
# Written at a time when there is no pace.
CHUNK_BYTES = 64 * 1024
STALL_TIMEOUT = 60.0
MAX_PACKET_ID = 65_535


@dataclass(frozen=True, slots=True)
class Assignment:
    """What one publisher does."""

    mqtt: MqttEndpoint
    prefix: str
    workload: Workload
    publisher: int


@dataclass(frozen=True, slots=True)
class Published:
    """What came of it: when it began and ended, in nanoseconds since 1970."""

    messages: int
    started_ns: int
    ended_ns: int


class Packets:
    """The PUBLISH packets of a publisher, prepared; `offsets` are those of packet ids and payloads."""

    def __init__(self, assignment: Assignment) -> None:
        workload = assignment.workload
        own_topics = range(assignment.publisher, workload.topics, workload.publishers)
        sizes = Sizes(workload.size)
        mean = sum(sizes.sample(PREPARED)) // PREPARED
        rounds = max(1, min(PREPARED, PREPARED_BYTES // mean, workload.of_publisher(0)) // len(own_topics))
        drawn = sizes.sample(rounds * len(own_topics))
        self._qos = workload.qos
        self._packets = [
            bytearray(self._encoded(topic_name(assignment.prefix, own_topics[index % len(own_topics)]), size))
            for index, size in enumerate(drawn)
        ]
        self._payload_at = [len(packet) - size for packet, size in zip(self._packets, drawn, strict=True)]
        self.chunk = max(1, CHUNK_BYTES // (sum(map(len, self._packets)) // len(self._packets)))

    def joined(self, first: int, count: int, stride: tuple[int, int], stamp: int) -> bytes:
        """The bytes of `count` messages from this publisher's `first`; `stride` is the offset and step of numbers."""
        packets, payload_at, write = self._packets, self._payload_at, HEADER.pack_into
        offset, step = stride
        parts = []
        for index in range(first, first + count):
            place = index % len(packets)
            packet, at = packets[place], payload_at[place]
            if self._qos:
                # Right before the payload: packet id (2 bytes), no properties (1 byte).
                packet[at - 3 : at - 1] = (index % MAX_PACKET_ID + 1).to_bytes(2, "big")
            write(packet, at, index * step + offset, stamp)
            parts.append(bytes(packet))
        return b"".join(parts)

    def _encoded(self, topic: str, size: int) -> bytes:
        packet_id = 1 if self._qos else None
        return mqtt5.PublishPacket(topic, b"." * size, qos=mqtt5.QoS(self._qos), packet_id=packet_id).write()


def publish(assignment: Assignment, pipe: Pipe) -> None:
    """Connect, say so, wait for the word to begin, publish, and tell what came of it: the body of the process."""
    packets = Packets(assignment)
    with connected(assignment.mqtt, clean_start=True) as connection:
        pipe.send(None)
        pipe.recv()
        started = time.time_ns()
        send = _at_full_speed if assignment.workload.rate is None else _at_a_pace
        sent = send(connection, packets, assignment)
        pipe.send(Published(sent, started, time.time_ns()))


def _at_full_speed(connection: Connection, packets: Packets, assignment: Assignment) -> int:
    workload = assignment.workload
    total, stride = workload.of_publisher(assignment.publisher), (assignment.publisher, workload.publishers)
    window = min(WINDOW, connection.connack.receive_max) if workload.qos else packets.chunk
    deadline = time.monotonic() + workload.seconds if workload.seconds else float("inf")
    sent = 0
    while sent < total and time.monotonic() < deadline:
        if workload.qos:
            _wait_for_room(connection, sent, window // 2)
        room = window - (sent - connection.acknowledged) if workload.qos else window
        count = min(room, packets.chunk, total - sent)
        connection.write(packets.joined(sent, count, stride, time.time_ns()))
        sent += count
    if workload.qos:
        _wait_for_room(connection, sent, 0)
    return sent


def _at_a_pace(connection: Connection, packets: Packets, assignment: Assignment) -> int:
    workload = assignment.workload
    total, stride = workload.of_publisher(assignment.publisher), (assignment.publisher, workload.publishers)
    window = min(WINDOW, connection.connack.receive_max) - 1
    interval = 1e9 * workload.publishers / (workload.rate or 1)
    first_due = time.time_ns() + interval * assignment.publisher / workload.publishers
    for index in range(total):
        due = int(first_due + interval * index)
        if (early := due - time.time_ns()) > 0:
            time.sleep(early / 1e9)
        if workload.qos:
            _wait_for_room(connection, index, window)
        connection.write(packets.joined(index, 1, stride, due))
    if workload.qos:
        _wait_for_room(connection, total, 0)
    return total


def _wait_for_room(connection: Connection, sent: int, in_flight: int) -> None:
    """Read acknowledgements until at most `in_flight` messages lack theirs."""
    while sent - connection.acknowledged > in_flight:
        if not connection.read(STALL_TIMEOUT):
            raise MqttError(f"the broker acknowledged nothing for {STALL_TIMEOUT:g} s")
