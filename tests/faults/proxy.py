"""A TCP proxy between the service and a broker, whose links break in every way that networks have.

One end of a link is the service ("client"), the other the broker ("server"). Bytes go through a queue a direction, so
that what was read and not passed on can be delayed, held back or dropped. A tap sees both directions as whole packets.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections import deque
from dataclasses import dataclass, replace
from enum import Enum
from typing import TYPE_CHECKING, Any, Protocol, Self

from tests.brokers.process import free_port
from tests.sockets import reset_on_close

if TYPE_CHECKING:
    from collections.abc import Callable

HOST = "127.0.0.1"
_READ_BYTES = 64 * 1024
_ROOM_BYTES = 4 * 1024 * 1024
# A slow reader must be felt: no more than this is taken off its hands.
_SLOW_ROOM_BYTES = 16 * 1024
_BYTES_AT_ONCE = 16
_RATE_TICK = 0.05
_CLOSE_SECONDS = 2.0
_TCP_CLOSE, _TCP_CLOSE_WAIT = 7, 8


class Direction(Enum):
    """Where bytes go."""

    UP = "to the broker"
    DOWN = "to the service"


@dataclass(frozen=True, slots=True)
class Conditions:
    """How the network is: which directions are blocked, the delay in seconds, bytes per second, single bytes."""

    blocked: frozenset[Direction] = frozenset()
    latency: float = 0.0
    rate: float | None = None
    bytewise: bool = False


FINE = Conditions()
PARTITION = Conditions(blocked=frozenset(Direction))


@dataclass(slots=True)
class Parcel:
    """Bytes on their way."""

    data: bytes

    def leaves(self) -> None:
        """They are about to be sent."""

    def arrived(self) -> None:
        """The other side's socket has them."""


class Tap(Protocol):
    """Sees one link."""

    def heard(self, direction: Direction, data: bytes) -> Parcel | None:
        """Take what was read in one direction, and return what to pass on."""

    def ended(self) -> None:
        """Either end is gone."""


class Link:
    """One connection through the proxy."""

    def __init__(self, proxy: Proxy, client: socket.socket) -> None:
        self.tap: Tap | None = None
        self._proxy = proxy
        self._ends = {Direction.DOWN: client}  # by the direction of the bytes that reach them
        self._pumps: dict[Direction, _Pump] = {}
        self._over = False
        self._disposals: dict[Direction, Callable[[socket.socket], None]] = {}
        self._task = asyncio.create_task(self._run())

    @property
    def task(self) -> asyncio.Task[None]:
        """Done when the link is."""
        return self._task

    @property
    def left_by_client(self) -> bool:
        """Whether the client has closed, though there may be bytes of it left to read."""
        state: int = self._ends[Direction.DOWN].getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]
        return state in {_TCP_CLOSE, _TCP_CLOSE_WAIT}

    def over(self) -> None:
        """Note that an end is gone."""
        if not self._over:
            self._over = True
            if self.tap is not None:
                self.tap.ended()

    def say(self, data: bytes) -> None:
        """Tell the service something in the broker's place, and then close."""
        self._pumps[Direction.DOWN].say_last(data)

    async def reset(self) -> None:
        """Tear both ends down with a TCP reset."""
        self._disposals = dict.fromkeys(Direction, _reset)
        await self._cancelled()

    async def forsake(self, kept: Direction) -> None:
        """Make it half-open: one end is gone, and the one that bytes in direction `kept` reach never hears of it."""
        self._disposals = dict.fromkeys(Direction, _reset) | {kept: self._proxy.forsaken.append}
        await self._cancelled()

    async def _cancelled(self) -> None:
        self.over()
        self._task.cancel()
        await asyncio.wait([self._task])

    async def _run(self) -> None:
        """Pass bytes until both ends are gone."""
        try:
            await self._pass()
        except OSError:
            self._disposals = dict.fromkeys(Direction, _reset)  # as near to "connection refused" as a proxy gets
        finally:
            self.over()
            for direction, end in self._ends.items():
                self._disposals.get(direction, socket.socket.close)(end)

    async def _pass(self) -> None:
        client = self._ends[Direction.DOWN]
        await self._proxy.permitted(Direction.UP)
        if self.left_by_client:
            return  # while it was blocked; the broker must not hear its CONNECT now, behind that of a later one
        server = self._ends[Direction.UP] = await _connected(self._proxy.target)
        self.tap = self._proxy.tap_for(self)
        self._pumps = {
            Direction.UP: _Pump(self, self._proxy, Direction.UP, client, server),
            Direction.DOWN: _Pump(self, self._proxy, Direction.DOWN, server, client),
        }
        running = [asyncio.create_task(pump.run()) for pump in self._pumps.values()]
        try:
            await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            # The other direction may have something left; nobody who closed waits for it for long.
            await asyncio.wait(running, timeout=_CLOSE_SECONDS)
        finally:
            for task in running:
                task.cancel()
            await asyncio.wait(running)


class _Pump:
    """One direction of a link."""

    def __init__(
        self, link: Link, proxy: Proxy, direction: Direction, source: socket.socket, sink: socket.socket
    ) -> None:
        self._link = link
        self._proxy = proxy
        self._direction = direction
        self._source = source
        self._sink = sink
        self._queue: deque[tuple[float, Parcel | None]] = deque()
        self._queued = 0
        self._changed = asyncio.Event()
        self._last: bytes | None = None

    async def run(self) -> None:
        """Read and write until the source ends, and what it said is passed on."""
        reading = asyncio.create_task(self._read())
        try:
            await self._write()
        finally:
            reading.cancel()
            await asyncio.wait([reading])

    def say_last(self, data: bytes) -> None:
        """Pass this on next, and then nothing."""
        self._last = data
        self._changed.set()

    async def _read(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                data = await loop.sock_recv(self._source, _READ_BYTES)
            except OSError:
                data = b""
            tap = self._link.tap
            if not data:
                self._link.over()
                self._put(None)
                return
            parcel = Parcel(data) if tap is None else tap.heard(self._direction, data)
            if parcel is not None:
                self._put(parcel)
            while self._queued > (_SLOW_ROOM_BYTES if self._proxy.conditions.rate else _ROOM_BYTES):
                await self._change()

    def _put(self, item: Parcel | None) -> None:
        self._queue.append((asyncio.get_running_loop().time(), item))
        self._queued += len(item.data) if item else 0
        self._changed.set()

    async def _change(self) -> None:
        self._changed.clear()
        await self._changed.wait()

    async def _write(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            while not self._queue and self._last is None:
                await self._change()
            if self._last is not None:
                await self._proxy.permitted(self._direction)
                with contextlib.suppress(OSError):
                    await self._send(self._last)
                    self._sink.shutdown(socket.SHUT_WR)
                return
            read_at, item = self._queue[0]
            await self._proxy.permitted(self._direction)
            while (wait := read_at + self._proxy.conditions.latency - loop.time()) > 0:
                await asyncio.sleep(wait)
            self._queue.popleft()
            if item is None:
                with contextlib.suppress(OSError):
                    self._sink.shutdown(socket.SHUT_WR)
                return
            self._queued -= len(item.data)
            self._changed.set()
            item.leaves()
            try:
                await self._send(item.data)
            except OSError:
                # That end is gone. What still comes is read and dropped: closing on unread bytes would be a reset, and
                # the other end would lose what it has not read.
                self._link.over()
                self._queue.clear()
                self._queued = 0
            else:
                item.arrived()

    async def _send(self, data: bytes) -> None:
        loop = asyncio.get_running_loop()
        at = 0
        while at < len(data):  # the conditions may change on the way
            conditions = self._proxy.conditions
            size = 1 if conditions.bytewise else int(conditions.rate * _RATE_TICK) if conditions.rate else len(data)
            await loop.sock_sendall(self._sink, data[at : at + size])
            at += size
            if conditions.bytewise:
                await asyncio.sleep(0 if at % _BYTES_AT_ONCE else 0.001)
            elif conditions.rate:
                await asyncio.sleep(_RATE_TICK)


class Proxy:
    """Listens on a port of its own and connects to `target` for each connection: `async with Proxy(...) as proxy`."""

    def __init__(
        self,
        target: Callable[[], tuple[str, int]],
        *,
        tap: Callable[[Link], Tap] | None = None,
        port: int | None = None,
    ) -> None:
        self._target = target
        self._tap = tap
        self.host = HOST
        self.port = port or free_port()
        self.conditions = FINE
        self.links: set[Link] = set()
        self.forsaken: list[socket.socket] = []
        self._changed = asyncio.Event()
        self._listening: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        await self.listen()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.refuse()
        self.let_go()

    @property
    def target(self) -> tuple[str, int]:
        """Where the broker is."""
        return self._target()

    def tap_for(self, link: Link) -> Tap | None:
        """The tap of a new link."""
        return self._tap(link) if self._tap else None

    async def permitted(self, direction: Direction) -> None:
        """Wait while the direction is blocked."""
        while direction in self.conditions.blocked:
            changed = self._changed
            await changed.wait()

    def change(self, conditions: Conditions = FINE, **changes: Any) -> None:
        """Make the network like this."""
        self.conditions = replace(conditions, **changes)
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def listen(self) -> None:
        """Accept connections (again)."""
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setblocking(False)
        listener.bind((self.host, self.port))
        listener.listen(128)
        self._listening = asyncio.create_task(self._accept(listener))

    async def refuse(self) -> None:
        """Be away: connections are refused, and those that are there reset."""
        if self._listening is not None:
            self._listening.cancel()
            await asyncio.wait([self._listening])
            self._listening = None
        await self.reset()

    async def reset(self) -> None:
        """Reset every connection."""
        await asyncio.gather(*(link.reset() for link in list(self.links)))

    async def half_open(self, kept: Direction = Direction.DOWN) -> None:
        """Make every connection half-open; new ones are fine. `let_go` ends what is left of them."""
        await asyncio.gather(*(link.forsake(kept) for link in list(self.links)))

    def let_go(self) -> None:
        """Reset what half-open connections have left."""
        while self.forsaken:
            _reset(self.forsaken.pop())

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        with listener:
            while True:
                client, _ = await loop.sock_accept(listener)
                _prepare(client)
                link = Link(self, client)
                self.links.add(link)
                link.task.add_done_callback(_forgetting(self.links, link))


def _forgetting(links: set[Link], link: Link) -> Callable[[asyncio.Task[None]], None]:
    def forget(task: asyncio.Task[None]) -> None:
        links.discard(link)
        if not task.cancelled():
            task.result()

    return forget


async def _connected(address: tuple[str, int]) -> socket.socket:
    server = socket.socket()
    _prepare(server)
    try:
        await asyncio.get_running_loop().sock_connect(server, address)
    except BaseException:
        server.close()
        raise
    return server


def _prepare(end: socket.socket) -> None:
    end.setblocking(False)
    end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def _reset(end: socket.socket) -> None:
    with contextlib.suppress(OSError):
        reset_on_close(end)
    end.close()
