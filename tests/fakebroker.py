"""A broker that does only what a test tells it, byte by byte: refusals, silence, half packets, nonsense.

`async with fake_broker() as broker: peer = await broker.peer()`; a `Dialect` writes packets of either protocol version
by hand, so that they can be wrong.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import functools
import shutil
import socket
import ssl
import tempfile
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, cast

import trustme
from websockets.frames import Frame, Opcode
from websockets.http11 import Request
from websockets.server import ServerProtocol
from websockets.typing import Subprotocol

from tests.sockets import reset_on_close

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable

TIMEOUT = 10.0
LIMIT = 64 * 1024 * 1024

CONNECT = 1
PUBACK = 4
PUBREC = 5
PUBCOMP = 7
SUBSCRIBE = 8
UNSUBSCRIBE = 10
PINGREQ = 12
DISCONNECT = 14
PINGRESP = b"\xd0\x00"


class Packet(NamedTuple):
    """What a client sent: the packet's type, its flags and all behind the length."""

    kind: int
    flags: int
    body: bytes

    @property
    def packet_id(self) -> int:
        return int.from_bytes(self.body[:2], "big")


class Peer:
    """The broker's end of one connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def packet(self) -> Packet:
        """The client's next packet; ConnectionError when it has closed instead."""
        async with asyncio.timeout(TIMEOUT):
            return await self.next_packet()

    async def next_packet(self) -> Packet:
        """The client's next packet, whenever it comes; ConnectionError when it has closed instead."""
        try:
            first = (await self._reader.readexactly(1))[0]
            length, shift, byte = 0, 0, 0x80
            while byte & 0x80:
                byte = (await self._reader.readexactly(1))[0]
                length |= (byte & 0x7F) << shift
                shift += 7
            return Packet(first >> 4, first & 0x0F, await self._reader.readexactly(length))
        except asyncio.IncompleteReadError as error:
            raise ConnectionError(f"the client closed after {error.partial!r}") from None

    async def expect(self, kind: int) -> Packet:
        """The client's next packet, which must be of this type; PINGREQs in between don't count."""
        packet = await self.packet()
        while packet.kind == PINGREQ != kind:
            packet = await self.packet()
        assert packet.kind == kind, packet
        return packet

    async def exactly(self, size: int) -> bytes:
        """This many bytes of what the client sends."""
        async with asyncio.timeout(TIMEOUT):
            return await self._reader.readexactly(size)

    async def closed_by_client(self) -> bytes:
        """Wait until the client closes; what it sent before."""
        async with asyncio.timeout(TIMEOUT):
            try:
                return await self._reader.read()
            except ConnectionResetError:
                return b""

    def write(self, *data: bytes) -> None:
        self._writer.write(b"".join(data))

    async def write_slowly(self, data: bytes) -> None:
        """One byte per segment."""
        for position in range(len(data)):
            self._writer.write(data[position : position + 1])
            await asyncio.sleep(0)
            await asyncio.sleep(0)

    async def flushed(self) -> None:
        """Wait until what was written has left this process, as far as the client reads it."""
        await self._writer.drain()

    def stop_reading(self) -> None:
        """Leave bytes in the socket, which takes few, until `read_on`."""
        self._writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 * 1024)
        cast("asyncio.Transport", self._writer.transport).pause_reading()

    def read_on(self) -> None:
        """Read again."""
        cast("asyncio.Transport", self._writer.transport).resume_reading()

    def close(self) -> None:
        """Close in order, behind what was written."""
        self._writer.close()

    def reset(self) -> None:
        """Close with a TCP reset."""
        reset_on_close(self._writer.get_extra_info("socket"))
        self._writer.transport.abort()


class _Frames:
    """What a Peer writes to if a WebSocket carries MQTT: each call becomes a frame."""

    def __init__(self, writer: asyncio.StreamWriter, frames: ServerProtocol) -> None:
        self._writer = writer
        self._frames = frames
        self.transport = writer.transport

    def write(self, data: bytes) -> None:
        self._frames.send_binary(data)
        self.flush()

    def flush(self) -> None:
        self._writer.write(b"".join(self._frames.data_to_send()))

    async def drain(self) -> None:
        await self._writer.drain()

    def close(self) -> None:
        self._writer.close()

    def get_extra_info(self, name: str) -> Any:
        return self._writer.get_extra_info(name)


class WebSocketPeer(Peer):
    """The broker's end of a WebSocket; `frames` is its protocol, to do with it what a broker should not."""

    def __init__(self, writer: asyncio.StreamWriter, frames: ServerProtocol) -> None:
        self.payload = asyncio.StreamReader(limit=LIMIT)
        self._out = _Frames(writer, frames)
        self._raw = writer
        super().__init__(self.payload, cast("asyncio.StreamWriter", self._out))
        self.frames = frames
        self.received: list[Frame] = []

    def flush(self) -> None:
        """Send what was done with `frames`."""
        self._out.flush()

    def write_raw(self, data: bytes) -> None:
        """Send bytes past `frames`."""
        self._raw.write(data)

    def take(self, events: Iterable[object]) -> None:
        """Note these frames of the client."""
        for frame in events:
            assert isinstance(frame, Frame)
            self.received.append(frame)
            if frame.opcode is Opcode.BINARY:
                self.payload.feed_data(bytes(frame.data))


class FakeBroker:
    """Listens, and hands out its end of each connection; `mqtt` is what a client's settings need beside the address."""

    def __init__(self, kind: str = "tcp") -> None:
        self.host = "127.0.0.1"
        self.port = 0
        self.mqtt: dict[str, Any] = {}
        self.ssl: ssl.SSLContext | None = None
        if kind == "tls":
            self.ssl, ca_cert = _tls()
            self.mqtt["tls"] = {"ca_cert": ca_cert}
        if kind == "ws":
            self.mqtt["transport"] = "websocket"
        self.made: list[Peer] = []
        self._waiting: asyncio.Queue[Peer] = asyncio.Queue()

    async def peer(self) -> Peer:
        """The next connection."""
        async with asyncio.timeout(TIMEOUT):
            return await self.next_peer()

    async def next_peer(self) -> Peer:
        """The next connection, whenever it comes."""
        return await self._waiting.get()

    def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = Peer(reader, writer)
        self.made.append(peer)
        self._waiting.put_nowait(peer)

    async def accept_websocket(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        frames = ServerProtocol(subprotocols=[Subprotocol("mqtt")], max_size=None)
        peer: WebSocketPeer | None = None
        with contextlib.suppress(ConnectionError):  # a client that resets has closed
            while data := await reader.read(LIMIT):
                frames.receive_data(data)
                events = frames.events_received()
                if peer is None and events:
                    request = events.pop(0)
                    assert isinstance(request, Request)
                    frames.send_response(frames.accept(request))
                    peer = WebSocketPeer(writer, frames)
                    peer.flush()
                    self.made.append(peer)
                    self._waiting.put_nowait(peer)
                if peer is not None:
                    peer.take(events)
                    peer.flush()
        if peer is not None:
            peer.payload.feed_eof()


@functools.cache
def _tls() -> tuple[ssl.SSLContext, str]:
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    trusted = Path(tempfile.mkdtemp(prefix="fakebroker-"), "ca.pem")
    atexit.register(shutil.rmtree, trusted.parent)
    authority.cert_pem.write_to_path(trusted)
    return context, str(trusted)


@asynccontextmanager
async def fake_broker(kind: str = "tcp") -> AsyncIterator[FakeBroker]:
    """Listen on a port of its own, for TCP, TLS or WebSocket; every connection is closed at the end."""
    broker = FakeBroker(kind)
    accept: Any = broker.accept_websocket if kind == "ws" else broker.accept
    server = await asyncio.start_server(accept, broker.host, 0, limit=LIMIT, backlog=1_024, ssl=broker.ssl)
    broker.port = server.sockets[0].getsockname()[1]
    try:
        yield broker
    finally:
        server.close()
        for peer in broker.made:
            peer.close()
        await server.wait_closed()


@dataclass(frozen=True, slots=True)
class Dialect:
    """Writes the broker's packets as one protocol version wants them."""

    protocol: Literal["5", "3.1.1"]

    @property
    def _properties(self) -> bytes:
        return b"\x00" if self.protocol == "5" else b""

    def connack(self, code: int = 0, *, session_present: bool = False) -> bytes:
        return packet(0x20, bytes([session_present, code]) + self._properties)

    def publish(
        self, topic: str | bytes, payload: bytes = b"", *, qos: int = 1, packet_id: int = 1, duplicate: bool = False
    ) -> bytes:
        name = topic.encode() if isinstance(topic, str) else topic
        body = len(name).to_bytes(2, "big") + name
        if qos:
            body += packet_id.to_bytes(2, "big")
        return packet(0x30 | duplicate << 3 | qos << 1, body + self._properties + payload)

    def suback(self, packet_id: int, *codes: int) -> bytes:
        return packet(0x90, packet_id.to_bytes(2, "big") + self._properties + bytes(codes))

    def unsuback(self, packet_id: int, *codes: int) -> bytes:
        body = packet_id.to_bytes(2, "big")
        return packet(0xB0, body + self._properties + bytes(codes) if self.protocol == "5" else body)


def client_id(connect: Packet) -> str:
    """The client id in a CONNECT whose properties take no more than 127 bytes."""
    body, start = connect.body, 10
    if body[6] == 5:
        start += 1 + body[start]
    length = int.from_bytes(body[start : start + 2], "big")
    return body[start + 2 : start + 2 + length].decode()


def pubrel(packet_id: int) -> bytes:
    return packet(0x62, packet_id.to_bytes(2, "big"))


def packet(first: int, body: bytes) -> bytes:
    """Put a fixed header before a body."""
    length, rest = b"", len(body)
    while True:
        rest, byte = divmod(rest, 128)
        length += bytes([byte | 0x80 if rest else byte])
        if not rest:
            return bytes([first]) + length + body
