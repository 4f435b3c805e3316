"""The reader at the far end: counts what arrives in Kafka."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from aiokafka import AIOKafkaConsumer
from aiokafka.errors import KafkaError

from server.demo.children import DemoError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from server.demo.brokers import Address

START_TIMEOUT = 15.0


class Reader:
    """Counts the records of some topics from when it was opened."""

    def __init__(self, consumer: AIOKafkaConsumer) -> None:
        self.records = 0
        self._consumer = consumer

    async def run(self) -> None:
        """Read until cancelled."""
        while True:
            for found in (await self._consumer.getmany(timeout_ms=1000)).values():
                self.records += len(found)


@asynccontextmanager
async def reader(kafka: Address, topics: Sequence[str]) -> AsyncIterator[Reader]:
    """Open a reader at the present end of these topics."""
    consumer = AIOKafkaConsumer(
        *topics,
        bootstrap_servers=str(kafka),
        group_id=None,
        enable_auto_commit=False,
        # The demo's own Kafka creates topics when asked for them, and everything in them belongs to this run.
        auto_offset_reset="earliest" if kafka.embedded else "latest",
    )
    try:
        try:
            async with asyncio.timeout(START_TIMEOUT):
                await consumer.start()
                for partition in consumer.assignment():
                    await consumer.position(partition)
        except (KafkaError, OSError, TimeoutError) as error:
            raise DemoError(f"Kafka at {kafka} can't be read: {error or 'no answer'}") from error
        yield Reader(consumer)
    finally:
        await consumer.stop()
