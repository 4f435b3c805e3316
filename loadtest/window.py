"""A broker that keeps its window: a proxy before Mosquitto, as a process of its own.

Mosquitto 2.0.11 keeps no more than receive maximum in flight only until the first acknowledgement of a resumed session;
each of them lets it send that many again (seen with 50: after 10 acknowledgements it sends 500). HiveMQ and EMQX keep
to their limits, and how fast a forwarder is there depends on its round trip. This proxy passes on a PUBLISH of QoS 1 or
2 only while fewer than `window` are unacknowledged, and everything else at once, over MQTT 5 and 3.1.1.

Usage: `python -m loadtest.window LISTEN_PORT MQTT_HOST MQTT_PORT WINDOW`
"""

from __future__ import annotations

import asyncio
import sys
from collections import deque
from typing import TYPE_CHECKING, cast

import uvloop

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_PUBLISH, _PUBACK, _PUBCOMP = 3, 4, 7
_QOS_BITS = 0b110
_LENGTH_BYTES = 4


class Packets:
    """Cuts a stream of bytes into MQTT packets."""

    def __init__(self) -> None:
        self._rest = b""

    def cut(self, data: bytes) -> Iterator[bytes]:
        """The whole packets that are there now, each with its fixed header."""
        data = self._rest + data
        start = 0
        while (end := _end(data, start)) is not None and end <= len(data):
            yield data[start:end]
            start = end
        self._rest = data[start:]


def _end(data: bytes, start: int) -> int | None:
    """Where the packet that starts there ends; None if its length has not come yet."""
    length = 0
    for number, byte in enumerate(data[start + 1 : start + 1 + _LENGTH_BYTES]):
        length |= (byte & 0x7F) << 7 * number
        if byte < 0x80:
            return start + 2 + number + length
    return None


class Window:
    """Holds back what may not pass yet."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._in_flight = 0
        self._waiting: deque[bytes] = deque()

    def from_broker(self, packets: Iterator[bytes]) -> bytes:
        """Take packets of the broker's; returns what passes now."""
        passing = []
        for packet in packets:
            if packet[0] >> 4 == _PUBLISH and packet[0] & _QOS_BITS:
                self._waiting.append(packet)
            else:
                passing.append(packet)
        return b"".join([*passing, *self._released()])

    def from_client(self, packets: Iterator[bytes]) -> bytes:
        """Look at packets of the client's; returns what of the broker's passes now."""
        self._in_flight -= sum(packet[0] >> 4 in {_PUBACK, _PUBCOMP} for packet in packets)
        return b"".join(self._released())

    def _released(self) -> list[bytes]:
        count = min(self._size - self._in_flight, len(self._waiting))
        self._in_flight += count
        return [self._waiting.popleft() for _ in range(count)]


class Side(asyncio.Protocol):
    """One side of a connection; `received` gets what comes, and the end of one side is the end of the other."""

    def __init__(self, received: Callable[[bytes], None]) -> None:
        self.received = received
        self.transport: asyncio.Transport | None = None
        self.other: Side | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self.transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Hand it on."""
        self.received(data)

    def connection_lost(self, _: Exception | None) -> None:
        """Close the other side, once it has got what is on its way."""
        if self.other is not None and self.other.transport is not None:
            self.other.transport.close()

    def write(self, data: bytes) -> None:
        """Write, if there is anything."""
        if data and self.transport is not None:
            self.transport.write(data)


async def serve(port: int, broker: tuple[str, int], window: int) -> None:
    """Pass on every connection to the port, each with a window of its own, until cancelled."""
    loop = asyncio.get_running_loop()
    opening: set[asyncio.Task[None]] = set()

    def accepted() -> Side:
        kept, from_client, from_broker = Window(window), Packets(), Packets()
        early: list[bytes] = []
        client = Side(early.append)

        async def open_broker() -> None:
            def heard_client(data: bytes) -> None:
                broker_side.write(data)
                client.write(kept.from_client(from_client.cut(data)))

            def heard_broker(data: bytes) -> None:
                client.write(kept.from_broker(from_broker.cut(data)))

            _, broker_side = await loop.create_connection(lambda: Side(heard_broker), *broker)
            client.other, broker_side.other = broker_side, client
            client.received = heard_client
            for data in early:
                heard_client(data)

        task = loop.create_task(open_broker())
        opening.add(task)
        task.add_done_callback(opening.discard)
        return client

    server = await loop.create_server(accepted, "127.0.0.1", port)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1]), (sys.argv[2], int(sys.argv[3])), int(sys.argv[4])))
