"""The plain loop of the load tool, made to lose, swap or repeat a message in a hundred: `FAULT ARGUMENTS...`."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

from aiokafka import AIOKafkaProducer

from loadtest import plain
from loadtest.payload import HEADER, PROBE

fault = sys.argv.pop(1)


class FaultyProducer(AIOKafkaProducer):  # type: ignore[misc]
    """Does with the messages what it shouldn't."""

    held: tuple[Any, ...] | None = None

    async def send(self, topic: str, value: bytes, key: bytes) -> Any:
        number, _ = HEADER.unpack_from(value)
        if number == PROBE or number % 100 not in {50, 51}:
            return await super().send(topic, value, key=key)
        if fault == "repeat":
            await super().send(topic, value, key=key)
        elif number % 100 == 50:
            # Lost for ever, or sent after its successor.
            self.held = topic, value
            done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            done.set_result(None)
            return done
        elif fault == "swap" and self.held is not None:
            sent = await super().send(topic, value, key=key)
            await super().send(*self.held, key=key)
            return sent
        return await super().send(topic, value, key=key)


plain.AIOKafkaProducer = FaultyProducer  # type: ignore[attr-defined]
plain.main()
