"""The socket under paho: opened and watched by the event loop, and fed to paho one packet at a time."""

from __future__ import annotations

import asyncio
import os
import socket
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


class Wire:
    """A socket watched by the event loop, which paho takes for its own: it reads only the packet it is fed."""

    def __init__(self, sock: socket.socket, loop: asyncio.AbstractEventLoop) -> None:
        self._sock = sock
        self._loop = loop
        self._packet = b""
        self._position = 0
        self._closed = False
        self.error: OSError | None = None

    def watch(self, readable: Callable[[], None]) -> None:
        """Call this when there is something to read."""
        if not self._closed:
            self._loop.add_reader(self._sock.fileno(), readable)

    def unwatch(self) -> None:
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

    def read_into(self, room: memoryview) -> int:
        """Read what the socket has, as far as there is room; returns how much, 0 at its end (bytes)."""
        return self._sock.recv_into(room)

    def broken(self) -> OSError | None:
        """What broke the connection, if it did, behind the bytes that were just read.

        uvloop calls a reader once for a socket with an error, and never again. What it reads then may still be data.
        """
        code = self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        return OSError(code, os.strerror(code)) if code else None

    def feed(self, packet: bytes) -> None:
        """What paho reads next."""
        self._packet, self._position = packet, 0

    # What paho calls.

    def recv(self, size: int) -> bytes:
        """Part of the packet that was fed."""
        start = self._position
        self._position = start + size
        part = self._packet[start : start + size]
        if not part:
            raise BlockingIOError
        return part

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

    def setblocking(self, flag: bool) -> None:
        """Nothing: the event loop needs it non-blocking, and so it is."""

    def close(self) -> None:
        """Close the socket, and let the event loop forget it first."""
        if not self._closed:
            self.unwatch()
            self.unwatch_writing()
            self._closed = True
            self._sock.close()


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
