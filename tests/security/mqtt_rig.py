"""A real connection of either version with the real Intake behind it, fed byte by byte with what a test drew."""

from __future__ import annotations

import asyncio
import fcntl
import socket
import struct
import termios
from bisect import bisect_right
from dataclasses import dataclass, field
from itertools import accumulate
from typing import TYPE_CHECKING, Any, cast
from unittest.mock import patch

from server.core.connections import MqttConnection
from server.core.subscription import Subscription
from server.mqtt import v5, v311
from server.mqtt.port import ConnectionEndedError, SessionRequest, SubscriptionRefusedError
from server.runtime.counters import Tally
from server.runtime.intake import Intake
from server.runtime.receivers import Reading
from server.ticks import Ticks
from tests.security.mqtt_reading import frames, kind

if TYPE_CHECKING:
    import random
    from collections.abc import Sequence

    from server.core.acks import Arrival
    from server.kafka.sink import Sink
    from server.mqtt.port import Connection, Ended, Message
    from server.mqtt.readbuffer import SharedBuffer

PUBACK, PUBREC = 4, 5
_READS = ((1, 3), (1, 40), (1, 2_000), (1, 300_000))
_MOST_SMALL_READS = 200  # of one stream: its rest comes faster
_BUDGETS = (1, 2_000, 100_000, 32 * 1024 * 1024)
_TURNS = 10_000


class _Kafka:
    """Takes what the intake produces, and confirms it part by part when told to."""

    def __init__(self, intake: Intake) -> None:
        self._intake = intake
        self._parts: list[tuple[Arrival[Any], Sequence[Message]]] = []
        self.in_flight_bytes = 0

    @property
    def unconfirmed(self) -> int:
        return sum(len(messages) for _, messages in self._parts)

    @property
    def waiting(self) -> set[int]:
        """Which messages are not confirmed, by identity."""
        return {id(message) for _, messages in self._parts for message in messages}

    def add(self, arrival: Arrival[Any], messages: Sequence[Message]) -> None:
        arrival.open_parts += 1
        self._parts.append((arrival, messages))

    def confirm_one(self, rng: random.Random) -> bool:
        """Confirm any of what waits, if something does."""
        if not self._parts:
            return False
        arrival, _ = self._parts.pop(rng.randrange(len(self._parts)))
        self._intake.window.confirm(arrival)
        self._intake.progressed()
        return True


class Session:
    """What is behind a connection: the service's own receiver and intake, and a note of what was handed on."""

    def __init__(self, rng: random.Random) -> None:
        self.intake = Intake(Tally())
        self.intake.budget = rng.choice(_BUDGETS)
        self.kafka = _Kafka(self.intake)
        self.intake.into(cast("Sink", self.kafka))
        broker = MqttConnection(host="127.0.0.1", keep_alive=60, client_id="c")
        self.request = SessionRequest(
            broker=broker, client_id="c", clean_start=False, session_expiry=600, receive_maximum=65_534
        )
        self.handed: list[Message] = []
        self.connection: Connection | None = None
        self._reading = Reading(self.intake, self._begun, durable=True)

    def _begun(self, connection: Connection) -> None:
        self.connection = connection
        self.intake.attach(connection, self.request)

    def connected(self, connection: Connection) -> None:
        assert self.connection is None, "connected twice"
        self._reading.connected(connection)

    def received(self, messages: Sequence[Message], size: int) -> None:
        assert messages
        assert size >= sum(len(message.topic) + len(message.payload) for message in messages)
        self.handed += messages
        self._reading.received(messages, size)

    def all_received(self) -> None:
        self._reading.all_received()

    def discarded(self, messages: Sequence[Message]) -> None:
        raise AssertionError(f"nobody leaves, yet {messages} are discarded")

    def receiving(self, size: int) -> None:
        self._reading.receiving(size)


@dataclass(slots=True)
class Outcome:
    """What became of a stream: how the connection ended, what was handed on, what was written to the broker."""

    ended: Ended
    handed: list[Message]
    written: bytes
    faults: list[str] = field(default_factory=list)


class _Feeding:
    """One stream on its way through one connection, and what has to hold after every read."""

    def __init__(self, data: bytes, rng: random.Random) -> None:
        self.data = data
        self.rng = rng
        self.session = Session(rng)
        self.position = 0
        self.written = bytearray()
        self.faults: list[str] = []
        self._bounds = [0, *accumulate(map(len, frames(data)[0]))]
        self._sizes = rng.choice(_READS)
        self._reads = 0
        self._counted = 0
        self._acknowledged = {PUBACK: 0, PUBREC: 0}

    def next_size(self) -> int:
        self._reads += 1
        sizes = self._sizes if self._reads < _MOST_SMALL_READS else _READS[-1]
        return min(self.rng.randint(*sizes), len(self.data) - self.position)

    def check_held(self, held: int) -> None:
        """While it reads, a connection holds what it has of one packet, and nothing else."""
        begins = self._bounds[bisect_right(self._bounds, self.position) - 1]
        if held > self.position - begins:
            self.faults.append(f"holds {held} bytes after {self.position}, of a packet that begins at {begins}")

    def check_acknowledged(self) -> None:
        """What is acknowledged was received in that order, and Kafka has it."""
        packets, _ = frames(bytes(self.written[self._counted :]))
        self._counted += sum(map(len, packets))
        waiting = self.session.kafka.waiting
        for packet in packets:
            if kind(packet) not in self._acknowledged:
                continue
            qos = 1 if kind(packet) == PUBACK else 2
            of_qos = [message for message in self.session.handed if message.qos == qos]
            number = self._acknowledged[kind(packet)]
            self._acknowledged[kind(packet)] += 1
            if number >= len(of_qos) or of_qos[number].packet_id != int.from_bytes(packet[2:4], "big"):
                self.faults.append(f"{packet.hex()} acknowledges nothing that is next in turn")
            elif id(of_qos[number]) in waiting:
                self.faults.append(f"{packet.hex()} acknowledges what Kafka has not confirmed")

    async def wait_for_room(self) -> None:
        """Reading is paused: confirm until it goes on."""
        if not self.session.kafka.confirm_one(self.rng):
            self.faults.append("reading is paused, and nothing waits for Kafka")
        await asyncio.sleep(0)

    async def between_reads(self) -> None:
        self.check_acknowledged()
        if self.rng.random() < 0.5:
            self.session.kafka.confirm_one(self.rng)
            self.check_acknowledged()
        if self.rng.random() < 0.2:
            await asyncio.sleep(0)

    def outcome(self, ended: Ended) -> Outcome:
        self.check_acknowledged()
        self.session.intake.detach(takeover=ended.takeover)
        return Outcome(ended, self.session.handed, bytes(self.written), self.faults)


class _Transport(asyncio.Transport):
    """As much of a transport as a protocol sees."""

    def __init__(self, protocol: asyncio.BufferedProtocol, written: bytearray) -> None:
        super().__init__()
        self._protocol = protocol
        self._written = written
        self.is_open = True
        self.reads = True

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if self.is_open:  # a real one, too, only counts what is written between the end of the stream and its close
            self._written += data

    def close(self) -> None:
        if self.is_open:
            self.is_open = False
            asyncio.get_running_loop().call_soon(self._protocol.connection_lost, None)

    abort = close

    def pause_reading(self) -> None:
        assert self.reads
        self.reads = False

    def resume_reading(self) -> None:
        assert not self.reads
        self.reads = True


async def feed_5(data: bytes, rng: random.Random, shared: SharedBuffer) -> Outcome:
    """Let an MQTT 5 connection read this, and then the end of the stream."""
    feeding = _Feeding(data, rng)
    connection = v5.Connection(feeding.session.request, feeding.session, shared, Ticks())
    transport = _Transport(connection, feeding.written)
    connection.connection_made(transport)
    subscribing: asyncio.Task[Any] | None = None
    while feeding.position < len(data) and transport.is_open and not feeding.faults:
        if connection._gives_way:
            await asyncio.sleep(0)
            continue
        if not transport.reads:
            await feeding.wait_for_room()
            continue
        room = connection.get_buffer(-1)
        size = min(len(room), feeding.next_size())
        room[:size] = data[feeding.position : feeding.position + size]
        feeding.position += size
        connection.buffer_updated(size)
        if transport.is_open and transport.reads:
            feeding.check_held(connection._reads.waiting)
        if subscribing is None and connection.is_open:
            subscribing = asyncio.create_task(_subscribe(connection))
        await feeding.between_reads()
    if connection._gives_way:
        await asyncio.sleep(0)
    while transport.is_open and not transport.reads and not feeding.faults:
        await feeding.wait_for_room()
    await _turns(1)  # what was kept while it did not read is taken in
    if transport.is_open:
        connection.eof_received()
        transport.close()
    ended = await asyncio.wait_for(connection.ended, 10)
    if subscribing is not None:
        await subscribing
    return feeding.outcome(ended)


async def feed_311(data: bytes, rng: random.Random, connector: v311.Connector) -> Outcome:
    """Let an MQTT 3.1.1 connection read this from a socket, and then the end of the stream."""
    feeding = _Feeding(data, rng)
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    theirs.setblocking(False)

    async def dialled(*_: object) -> socket.socket:
        return ours

    with patch.object(v311, "tcp_connection", dialled), theirs:
        connecting = asyncio.create_task(_connect(connector, feeding.session))
        await _turns(3)
        subscribing: asyncio.Task[Any] | None = None
        while feeding.position < len(data) and not _is_over(connecting, feeding) and not feeding.faults:
            try:
                feeding.position += theirs.send(data[feeding.position : feeding.position + feeding.next_size()])
            except BrokenPipeError:
                break  # closed meanwhile, for which there is a reason in the end
            await _until_read(ours, connecting, feeding)
            _collect(theirs, feeding.written)
            connection = cast("v311.Connection | None", feeding.session.connection)
            if connection is not None and connection.is_open and not connection._reading_paused:
                feeding.check_held(connection._reads.waiting)
            if subscribing is None and connection is not None and connection.is_open:
                subscribing = asyncio.create_task(_subscribe(connection))
                await _turns(2)
            await feeding.between_reads()
        if ours.fileno() >= 0:
            await _turns(2)
            _collect(theirs, feeding.written)
            theirs.shutdown(socket.SHUT_WR)
            while not _is_over(connecting, feeding):
                if not feeding.session.kafka.confirm_one(rng):
                    await asyncio.sleep(0)
        ended = await asyncio.wait_for(connecting, 10)
        if subscribing is not None:
            await subscribing
        _collect(theirs, feeding.written)
    return feeding.outcome(ended)


async def _connect(connector: v311.Connector, session: Session) -> Ended:
    """How the connection ended, whenever that is."""
    try:
        connection = await connector.connect(session.request, session)
    except ConnectionEndedError as error:
        return error.ended
    return await asyncio.shield(connection.ended)


async def _subscribe(connection: v5.Connection | v311.Connection) -> None:
    """Subscribe and unsubscribe, as if the answers to that were to come in the stream."""
    try:
        await connection.subscribe([Subscription("a", 1)])
        await connection.unsubscribe(["a"])
    except (ConnectionEndedError, SubscriptionRefusedError):
        pass  # which of these, the stream decides; anything else is a fault


def _is_over(connecting: asyncio.Task[Ended], feeding: _Feeding) -> bool:
    connection = feeding.session.connection
    return connecting.done() or (connection is not None and connection.ended.done())


async def _until_read(sock: socket.socket, connecting: asyncio.Task[Ended], feeding: _Feeding) -> None:
    """Wait until the connection has read all there is, or does not read."""
    for _ in range(_TURNS):
        await asyncio.sleep(0)
        if _is_over(connecting, feeding) or sock.fileno() < 0:
            return
        connection = cast("v311.Connection | None", feeding.session.connection)
        if connection is not None and connection._reading_paused:
            await feeding.wait_for_room()
        elif not struct.unpack("i", fcntl.ioctl(sock.fileno(), termios.FIONREAD, b"\0" * 4))[0]:
            return
    feeding.faults.append("it does not read what is there")


def _collect(sock: socket.socket, into: bytearray) -> None:
    """Read what the connection has written."""
    try:
        while data := sock.recv(65_536):
            into += data
    except (BlockingIOError, ConnectionResetError):
        return


async def _turns(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)
