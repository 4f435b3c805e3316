"""A few simulated devices: each has its own MQTT connection and measures temperature and humidity."""

from __future__ import annotations

import asyncio
import itertools
import json
import random
from contextlib import aclosing
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import mqtt5

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterator

    from server.demo.brokers import Address

NAMES = ("kitchen", "cellar", "garage", "greenhouse", "attic", "stable")
# Some brokers refuse 0. No PINGREQ is needed: a device says something several times a second.
KEEP_ALIVE = 30
CONNECT_TIMEOUT = 5.0
RETRY_AFTER = 1.0
MAX_PACKET_ID = 65_535


class Fleet:
    """All devices, with client ids that begin with `client_id`.

    `published` counts the messages the broker has confirmed.
    """

    def __init__(self, broker: Address, *, client_id: str, devices: int, per_second: float) -> None:
        self.published = 0
        self.connected = 0
        self._broker = broker
        self._client_id = client_id
        self._names = NAMES[:devices]
        self._pause = len(self._names) * 1.0 / per_second

    async def run(self) -> None:
        """Publish until cancelled."""
        async with asyncio.TaskGroup() as group:
            for name in self._names:
                group.create_task(self._live(name))

    async def _live(self, name: str) -> None:
        readings = _readings(name)
        while True:
            try:
                await self._connection(name, readings)
            except* (OSError, TimeoutError):
                # A device without a broker tries again; `connected` shows it.
                await asyncio.sleep(RETRY_AFTER)

    async def _connection(self, name: str, readings: Iterator[tuple[str, bytes]]) -> None:
        """One connection, until it is lost."""
        async with asyncio.timeout(CONNECT_TIMEOUT):
            reader, writer = await asyncio.open_connection(self._broker.host, self._broker.port)
        try:
            async with aclosing(_packets(reader)) as packets:
                writer.write(
                    mqtt5.ConnectPacket(f"{self._client_id}-{name}", clean_start=True, keep_alive=KEEP_ALIVE).write()
                )
                async with asyncio.timeout(CONNECT_TIMEOUT):
                    connack = await anext(packets)
                if not isinstance(connack, mqtt5.ConnAckPacket) or int(connack.reason_code) != 0:
                    raise ConnectionError(f"refused: {connack}")
                self.connected += 1
                try:
                    async with asyncio.TaskGroup() as group:
                        group.create_task(self._count(packets))
                        group.create_task(self._publish(readings, writer))
                finally:
                    self.connected -= 1
        finally:
            if not writer.is_closing():
                writer.write(mqtt5.DisconnectPacket().write())
            writer.close()

    async def _count(self, packets: AsyncGenerator[mqtt5.Packet, None]) -> None:
        async for packet in packets:
            if isinstance(packet, mqtt5.PubAckPacket):
                self.published += 1

    async def _publish(self, readings: Iterator[tuple[str, bytes]], writer: asyncio.StreamWriter) -> None:
        packet_ids = itertools.cycle(range(1, MAX_PACKET_ID + 1))
        for (topic, payload), packet_id in zip(readings, packet_ids, strict=False):
            packet = mqtt5.PublishPacket(topic, payload, qos=mqtt5.QoS.AT_LEAST_ONCE, packet_id=packet_id)
            writer.write(packet.write())
            await writer.drain()
            await asyncio.sleep(self._pause)


async def _packets(reader: asyncio.StreamReader) -> AsyncGenerator[mqtt5.Packet, None]:
    """Decode what the broker sends; its closing the connection is a ConnectionError."""
    buffer = b""
    while data := await reader.read(65_536):
        buffer += data
        while True:
            try:
                packet, used = mqtt5.read(memoryview(buffer))
            except IndexError:  # the rest of the packet is still on its way
                break
            buffer = buffer[used:]
            yield packet
    raise ConnectionError("the broker closed the connection")


def _readings(device: str) -> Iterator[tuple[str, bytes]]:
    """Measure for ever: temperature and humidity in turn, each a little different from the one before."""
    values = {"temperature": 21.0, "humidity": 45.0}
    for quantity in itertools.cycle(values):
        values[quantity] += random.uniform(-0.2, 0.2)  # noqa: S311 - weather, not a secret
        reading = {"device": device, quantity: round(values[quantity], 2), "at": datetime.now(UTC).isoformat()}
        yield f"demo/{device}/{quantity}", json.dumps(reading).encode()
