"""An MQTT broker that keeps sessions, numbers packets as one is told, and fails where a test wants it to.

It lives in the test's own event loop and hands out one end of a socket pair for each connection, so that it works in
virtual time. What it promises is what brokers promise: a message it accepted is sent until it is acknowledged, in
order, with DUP set when it was sent before.
"""

from __future__ import annotations

import asyncio
import socket
from collections import Counter, deque
from dataclasses import dataclass, field
from random import Random
from typing import TYPE_CHECKING
from unittest.mock import patch

from server.mqtt import v5, v311
from server.mqtt.readbuffer import SharedBuffer
from server.ticks import Ticks
from tests.fakebroker import (
    CONNECT,
    DISCONNECT,
    PINGREQ,
    PINGRESP,
    PUBACK,
    PUBCOMP,
    PUBREC,
    SUBSCRIBE,
    UNSUBSCRIBE,
    Dialect,
    Packet,
    Peer,
    packet,
    pubrel,
)
from tests.faults.packet_ids import Outgoing

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence

    from server.mqtt.port import Connection, Receiver, SessionRequest
    from tests.faults.packet_ids import Policy

_TAKEN_OVER = packet(0xE0, b"\x8e")
_TURNS = 10


@dataclass(frozen=True)
class Round:
    """What another client does with a session: it acknowledges some of what is in flight, and new messages come.

    It takes the first `acknowledge`, or with a `seed` as many of any.
    """

    acknowledge: int = 0
    accept: int = 0
    seed: int | None = None

    def chosen(self, in_flight: Sequence[Outgoing]) -> Sequence[Outgoing]:
        """What it acknowledges."""
        count = min(self.acknowledge, len(in_flight))
        return in_flight[:count] if self.seed is None else Random(self.seed).sample(in_flight, count)  # noqa: S311


@dataclass
class Traffic:
    """What went over one session, by message number."""

    settled: set[int] = field(default_factory=set)  # acknowledged by our client
    elsewhere: set[int] = field(default_factory=set)  # acknowledged by another client, or lost by the broker
    answered: set[int] = field(default_factory=set)  # our client wrote an acknowledgement, whatever became of it
    sent: Counter[int] = field(default_factory=Counter)  # how often it left for our client


class SimulatedBroker:
    """One session of one client, the topic `t`, and every way to get between them.

    `lag` is how long each packet of the client waits before it is processed (seconds); what waits when the connection
    ends is lost. `pings_overtake` answers a PINGREQ at once all the same, as a broker may that has a thread for each.
    """

    def __init__(
        self,
        policy: Policy,
        dialect: Dialect,
        *,
        qos: int = 1,
        payload: Callable[[int], bytes] = lambda number: b"%d" % number,
        lag: float = 0.0,
        pings_overtake: bool = False,
    ) -> None:
        self.policy = policy
        self.dialect = dialect
        self.accepted = 0
        self.traffic = Traffic()
        self.qos = qos
        self._payload = payload
        self._lag = lag
        self._pings_overtake = pings_overtake
        self._exists = self.subscribed = False
        self._waiting: deque[int] = deque()
        self._in_flight: list[Outgoing] = []
        self._wire: _Wire | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    def __repr__(self) -> str:
        policy, in_flight = type(self.policy).__name__, [(each.number, each.packet_id) for each in self._in_flight]
        return f"<{policy}: {self.accepted} accepted, {len(self._waiting)} wait, in flight {in_flight}>"

    @property
    def is_empty(self) -> bool:
        """Whether every message was acknowledged to the end."""
        return not self._waiting and not self._in_flight

    # --- what happens at the broker -----------------------------------------------------------------------------------

    def dial(self) -> socket.socket:
        """Connect: the client's end of a new connection."""
        theirs, ours = socket.socketpair()
        theirs.setblocking(False)
        ours.setblocking(False)
        self._spawn(self._serve(ours))
        return theirs

    def publish(self, count: int) -> None:
        """Accept as many messages from devices."""
        assert self.subscribed, "nobody would get them"
        self._accept(count)
        self._pump()

    def mute(self) -> None:
        """From now on nothing reaches the client, though the broker believes it does."""
        if self._wire is not None:
            self._wire.mute = True

    def deaf(self) -> None:
        """From now on nothing of the client is processed; it can't see that."""
        if self._wire is not None:
            self._wire.deaf = True

    async def cut(self, *, told: bytes = b"", reset: bool = False) -> None:
        """End the connection, behind `told`: packets, or a part of one."""
        wire = self._wire
        if wire is None:
            return
        wire.deaf = True
        for _ in range(_TURNS):  # what the client has written is seen, and not processed
            await asyncio.sleep(0)
        self._wire = None
        if told and not wire.mute:
            wire.peer.write(told)
        if reset:
            wire.peer.reset()
        else:
            wire.peer.close()

    async def cut_within_a_packet(self) -> None:
        """End the connection in the middle of a PUBLISH that the broker believes it has sent."""
        half = b""
        if self._waiting and len(self._in_flight) < self.policy.window:
            whole = self._publish_packet(self._take())
            half = whole[: len(whole) // 2]
        await self.cut(told=half)

    async def take_over(self, *rounds: Round, told: bool) -> None:
        """Let another client have the session for a while; our client is told by DISCONNECT, or just closed."""
        await self.cut(told=_TAKEN_OVER if told and self.dialect.protocol == "5" else b"")
        self._held(rounds)

    def hold_unnoticed(self, *rounds: Round) -> None:
        """Let another client have the session while our client's connection is dead, and it does not know."""
        self.mute()
        self.deaf()
        self._held(rounds)

    async def lose_session(self) -> None:
        """Forget the session, and with it everything that was not acknowledged."""
        await self.cut()
        self.traffic.elsewhere.update(self._waiting, (each.number for each in self._in_flight))
        self._waiting.clear()
        self._in_flight.clear()
        self._exists = self.subscribed = False
        self.policy.forget()

    def end(self) -> None:
        """Stop everything."""
        for task in self._tasks:
            task.cancel()

    def _accept(self, count: int) -> None:
        self._waiting += range(self.accepted, self.accepted + count)
        self.accepted += count

    # --- another client -----------------------------------------------------------------------------------------------

    def _held(self, rounds: Sequence[Round]) -> None:
        """It is sent what is in flight and what comes, and acknowledges what the rounds say, to the end."""
        self._exists = self.subscribed = True  # it is a mapping like ours, so it subscribes the same
        self.policy.resumed(self._in_flight)
        for each in rounds:
            for done in each.chosen(self._in_flight):
                self._in_flight.remove(done)
                self.traffic.elsewhere.add(done.number)
            self._accept(each.accept)
            while self._waiting and len(self._in_flight) < self.policy.window:
                self._take()

    # --- sending ------------------------------------------------------------------------------------------------------

    def _take(self) -> Outgoing:
        """Give the oldest message that waits a packet id."""
        used = {each.packet_id for each in self._in_flight}
        outgoing = Outgoing(self._waiting.popleft(), self.policy.next_id(used), sent=True)
        self._in_flight.append(outgoing)
        return outgoing

    def _pump(self) -> None:
        """Send what the window allows."""
        wire = self._wire
        while wire is not None and self._waiting and len(self._in_flight) < self.policy.window:
            self._send(wire, self._publish_packet(self._take()))

    def _publish_packet(self, outgoing: Outgoing, *, duplicate: bool = False) -> bytes:
        self.traffic.sent[outgoing.number] += 1
        payload, packet_id = self._payload(outgoing.number), outgoing.packet_id
        return self.dialect.publish("t", payload, qos=self.qos, packet_id=packet_id, duplicate=duplicate)

    def _send(self, wire: _Wire, data: bytes) -> None:
        if not wire.mute:
            wire.peer.write(data)

    # --- one connection -----------------------------------------------------------------------------------------------

    async def _serve(self, ours: socket.socket) -> None:
        peer = Peer(*await asyncio.open_connection(sock=ours))
        try:
            connect = await peer.next_packet()
            assert connect.kind == CONNECT
            if self._wire is not None:  # the client's own former connection, which it has given up
                await self.cut()
            wire = _Wire(peer)
            self._connected(wire)
            processing = asyncio.create_task(self._process(wire))
            try:
                while True:
                    asked = await peer.next_packet()
                    self._note(asked)
                    wire.inbox.put_nowait((asyncio.get_running_loop().time() + self._lag, asked))
                    if self._pings_overtake and asked.kind == PINGREQ and not wire.deaf:
                        self._send(wire, PINGRESP)
            finally:
                processing.cancel()
                if self._wire is wire:
                    self._wire = None
        except (ConnectionError, asyncio.CancelledError):
            pass
        finally:
            peer.close()

    def _connected(self, wire: _Wire) -> None:
        present, self._exists = self._exists, True
        self._wire = wire
        self._send(wire, self.dialect.connack(session_present=present))
        self.policy.resumed(self._in_flight)
        for each in self._in_flight:
            again = pubrel(each.packet_id) if each.released else self._publish_packet(each, duplicate=True)
            self._send(wire, again)
        self._pump()

    def _note(self, asked: Packet) -> None:
        """Note what the client acknowledges, also if that comes to nothing."""
        if asked.kind in {PUBACK, PUBREC}:
            self.traffic.answered.update(each.number for each in self._in_flight if each.packet_id == asked.packet_id)

    async def _process(self, wire: _Wire) -> None:
        while True:
            due, asked = await wire.inbox.get()
            if self._lag:
                await asyncio.sleep(due - asyncio.get_running_loop().time())
            if not wire.deaf:
                self._answer(wire, asked)

    def _answer(self, wire: _Wire, asked: Packet) -> None:
        match asked.kind:
            case k if k == PUBACK:
                self._settle(asked.packet_id)
            case k if k == PUBREC:
                for each in self._in_flight:
                    each.released = each.released or each.packet_id == asked.packet_id
                self._send(wire, pubrel(asked.packet_id))
            case k if k == PUBCOMP:
                self._settle(asked.packet_id)
            case k if k == PINGREQ and not self._pings_overtake:
                self._send(wire, PINGRESP)
            case k if k == SUBSCRIBE:
                self.subscribed = True
                self._send(wire, self.dialect.suback(asked.packet_id, self.qos))
            case k if k == UNSUBSCRIBE:
                self._send(wire, self.dialect.unsuback(asked.packet_id, 0))
            case k if k == DISCONNECT:
                wire.peer.close()
        self._pump()

    def _settle(self, packet_id: int) -> None:
        for each in self._in_flight:
            if each.packet_id == packet_id:
                self._in_flight.remove(each)
                self.traffic.settled.add(each.number)
                return

    def _spawn(self, serving: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(serving)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


@dataclass(eq=False)
class _Wire:
    """One connection of our client."""

    peer: Peer
    mute: bool = False
    deaf: bool = False
    inbox: asyncio.Queue[tuple[float, Packet]] = field(default_factory=asyncio.Queue)


@dataclass(frozen=True)
class Dialler:
    """Makes real connections of the service to a simulated broker, in place of its `Connector`."""

    broker: SimulatedBroker

    async def connect(self, request: SessionRequest, receiver: Receiver) -> Connection:
        """Connect."""
        if self.broker.dialect.protocol == "5":
            five = v5.Connection(request, receiver, SharedBuffer(), Ticks())
            await five.connect(asyncio.get_running_loop().create_connection(lambda: five, sock=self.broker.dial()))
            return five
        with patch.object(v311, "tcp_connection", self._dial):
            return await v311.Connector().connect(request, receiver)

    async def _dial(self, host: str, port: int) -> socket.socket:
        del host, port
        return self.broker.dial()
