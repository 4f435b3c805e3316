"""What lies under paho: opened and watched by the event loop, and fed to paho one packet at a time."""

from __future__ import annotations

import asyncio
import os
import socket
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Protocol, cast

from server.mqtt.dial import SHUTDOWN_SECONDS

if TYPE_CHECKING:
    from collections.abc import Callable


class Reader(Protocol):
    """Who reads from a wire."""

    def room(self) -> memoryview:
        """Where the next read goes; never empty."""

    def arrived(self, size: int) -> None:
        """So many bytes were read into `room()`."""

    def broke(self, error: Exception | None) -> None:
        """The connection broke; what broke it, None if the broker closed it."""

    def pause_writing(self) -> None:
        """The broker does not read: write no more."""

    def resume_writing(self) -> None:
        """It reads."""


class Wire(ABC):
    """What paho takes for its socket: it reads only the packet it is fed."""

    def __init__(self) -> None:
        self._packet = b""
        self._position = 0
        self.error: OSError | None = None
        self.is_full = False  # it has taken more than the broker reads

    @abstractmethod
    def start_reading(self) -> None:
        """Tell the reader of what there is to read."""

    @abstractmethod
    def stop_reading(self) -> None:
        """Leave bytes where they are."""

    @abstractmethod
    def watch_writing(self, writable: Callable[[], None]) -> None:
        """Call this when there is room to write."""

    @abstractmethod
    def unwatch_writing(self) -> None:
        """Nothing more to write."""

    @abstractmethod
    def finish(self) -> None:
        """Close behind what was written."""

    @abstractmethod
    def close(self) -> None:
        """Close at once, unless it finishes already."""

    def feed(self, packet: bytes) -> None:
        """What paho reads next."""
        self._packet, self._position = packet, 0

    # What paho calls.

    @abstractmethod
    def send(self, data: bytes | bytearray) -> int:
        """Write what is taken; returns how much that is (bytes)."""

    @abstractmethod
    def fileno(self) -> int:
        """The socket's descriptor."""

    def recv(self, size: int) -> bytes:
        """Part of the packet that was fed."""
        start = self._position
        self._position = start + size
        part = self._packet[start : start + size]
        if not part:
            raise BlockingIOError
        return part

    def setblocking(self, flag: bool) -> None:  # noqa: B027 - for paho; the event loop sees to it
        """Nothing: the event loop needs it non-blocking, and so it is."""


class SocketWire(Wire):
    """A plain socket watched by the event loop."""

    def __init__(self, sock: socket.socket, loop: asyncio.AbstractEventLoop, reader: Reader) -> None:
        super().__init__()
        self._sock = sock
        self._loop = loop
        self._reader = reader
        self._closed = False

    def start_reading(self) -> None:
        """Tell the reader of what there is to read."""
        if not self._closed:
            self._loop.add_reader(self._sock.fileno(), self._readable)

    def stop_reading(self) -> None:
        """Leave bytes where they are."""
        if not self._closed:
            self._loop.remove_reader(self._sock.fileno())

    def watch_writing(self, writable: Callable[[], None]) -> None:
        """Call this when there is room to write."""
        if not self._closed:
            self._loop.add_writer(self._sock.fileno(), writable)

    def unwatch_writing(self) -> None:
        """Nothing more to write."""
        if not self._closed:
            self._loop.remove_writer(self._sock.fileno())

    def _readable(self) -> None:
        reader = self._reader
        try:
            size = self._sock.recv_into(reader.room())
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            reader.broke(error)
            return
        if not size:
            reader.broke(None)
            return
        reader.arrived(size)
        if not self._closed and (broken := self._broken()) is not None:
            reader.broke(broken)

    def _broken(self) -> OSError | None:
        """What broke the connection, if it did, behind the bytes that were just read.

        uvloop calls a reader once for a socket with an error, and never again. What it reads then may still be data.
        """
        code = self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        return OSError(code, os.strerror(code)) if code else None

    def send(self, data: bytes | bytearray) -> int:
        """Write to the socket what it takes."""
        try:
            return self._sock.send(data)
        except BlockingIOError:
            raise
        except OSError as error:
            self.error = error
            raise

    def fileno(self) -> int:
        """The socket's descriptor."""
        return self._sock.fileno()

    def finish(self) -> None:
        """Nothing: what was written is the kernel's, which sends it after a close."""

    def close(self) -> None:
        """Close the socket, and let the event loop forget it first."""
        if not self._closed:
            self.stop_reading()
            self.unwatch_writing()
            self._closed = True
            self._sock.close()


class StreamWire(Wire, asyncio.BufferedProtocol):
    """A transport of the event loop, which carries plain MQTT: TLS or WebSocket is under it.

    It takes all that is written, so writing never waits; it leaves with the next turn of the loop, together.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, reader: Reader) -> None:
        super().__init__()
        self._loop = loop
        self._reader = reader
        self._transport: asyncio.Transport | None = None
        self._closed = False
        self._deadline: asyncio.TimerHandle | None = None

    # What the transport calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """It is open."""
        self._transport = cast("asyncio.Transport", transport)
        if self._closed:
            self._transport.abort()

    def get_buffer(self, sizehint: int) -> memoryview:
        """Where the next read goes."""
        del sizehint
        return self._reader.room()

    def buffer_updated(self, nbytes: int) -> None:
        """So much was read."""
        if not self._closed:
            self._reader.arrived(nbytes)

    def eof_received(self) -> bool:
        """Let the transport close."""
        return False

    def pause_writing(self) -> None:
        """It holds enough that the broker has not read."""
        self.is_full = True
        self._reader.pause_writing()

    def resume_writing(self) -> None:
        """It has room again."""
        self.is_full = False
        self._reader.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        """It is closed."""
        if self._deadline is not None:
            self._deadline.cancel()
        if not self._closed:
            self._reader.broke(exc)

    # What the connection calls.

    def start_reading(self) -> None:
        """Tell the reader of what there is to read."""
        if self._transport is not None and not self._closed:
            self._transport.resume_reading()

    def stop_reading(self) -> None:
        """Leave bytes where they are."""
        if self._transport is not None and not self._closed:
            self._transport.pause_reading()

    def watch_writing(self, writable: Callable[[], None]) -> None:
        """There always is room, but what is written in this turn of the loop shall leave together."""
        self._loop.call_soon(writable)

    def unwatch_writing(self) -> None:
        """Nothing more to write."""

    def send(self, data: bytes | bytearray) -> int:
        """Write all of it."""
        if self._transport is not None and not self._closed:
            self._transport.write(bytes(data))
        return len(data)

    def fileno(self) -> int:
        """None of its own: paho only shows it."""
        return -1

    def finish(self) -> None:
        """Close behind what was written, which a broker that reads gets within SHUTDOWN_SECONDS."""
        if self._transport is not None and not self._closed:
            self._closed = True
            self._deadline = self._loop.call_later(SHUTDOWN_SECONDS, self._transport.abort)
            self._transport.close()

    def close(self) -> None:
        """Close at once, unless it finishes already."""
        if not self._closed:
            self._closed = True
            if self._transport is not None:
                self._transport.abort()


async def tcp_connection(host: str, port: int) -> socket.socket:
    """Connect to the first of the host's addresses that accepts."""
    loop = asyncio.get_running_loop()
    failure: OSError = OSError("the host has no address")
    for family, kind, protocol, _, address in await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM):
        try:
            sock = socket.socket(family, kind, protocol)
        except OSError as error:  # a family this machine does not have
            failure = error
            continue
        try:
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await loop.sock_connect(sock, address)
        except OSError as error:
            sock.close()
            failure = error
        except BaseException:
            sock.close()
            raise
        else:
            return sock
    raise failure
