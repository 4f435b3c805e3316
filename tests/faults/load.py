"""The load of a run: a publisher that outlives the broker's restarts and remembers what the broker accepted."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
import uuid
from typing import TYPE_CHECKING

from tests.devices import connected
from tests.faults.history import Publication

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from tests.brokers import Mosquitto, MqttBroker
    from tests.devices import Connection
    from tests.faults.history import MessageId

TOPICS = 50
PER_SECOND = 200
# In this time every topic gets a message, and so every partition.
ROUND_SECONDS = TOPICS / PER_SECOND
_TICK = 0.02
# More than a broker that is frozen for 30 s leaves unanswered; then no new messages are made.
_MOST_UNCONFIRMED = 20_000


def identify(payload: bytes) -> tuple[MessageId, str]:
    """Which message this is, and its uuid.

    Raises:
        ValueError: it is none of ours.
    """
    content = json.loads(payload)
    try:
        return (content["topic"], content["seq"]), content["uuid"]
    except (KeyError, TypeError):
        raise ValueError(f"not a message of the load: {payload[:80]!r}") from None


class Load:
    """Publishes `per_second` messages at QoS 2, in turn on `prefix`/0, `prefix`/1 and so on.

    QoS 2, so that a subscription at QoS 2 gets it and one at QoS 1 gets 1: each message serves every mapping.
    """

    def __init__(
        self, broker: MqttBroker | Mosquitto, prefix: str, *, topics: int = TOPICS, per_second: int = PER_SECOND
    ) -> None:
        self.publications: list[Publication] = []
        self._broker = broker
        self._topics = [f"{prefix}/{number}" for number in range(topics)]
        self._per_second = per_second
        self._unconfirmed: dict[int, Publication] = {}
        self._stopping = False

    def find(self, message: MessageId) -> Publication:
        """The publication of a message."""
        topic, seq = message
        return self.publications[seq * len(self._topics) + int(topic.rpartition("/")[2])]

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Publish until the block ends; everything is confirmed then."""
        task = asyncio.create_task(self._run())
        try:
            yield
            self._stopping = True
            await task
        finally:
            task.cancel()
            await asyncio.wait([task])

    async def _run(self) -> None:
        while not self._stopping or self._unconfirmed:
            # The broker is restarted again and again: that is what it is for.
            with contextlib.suppress(OSError):
                await self._on_one_connection()
            await asyncio.sleep(_TICK)

    async def _on_one_connection(self) -> None:
        async with connected(self._broker.host, self._broker.port) as connection:
            again = list(self._unconfirmed.items())
            for _, publication in again:
                publication.attempts += 1
            self._write(connection, again)
            try:
                await self._publish(connection)
            finally:
                self._note(connection)
        if connection.refused:
            raise AssertionError(f"the broker refused a message: {connection.refused[0]}")

    async def _publish(self, connection: Connection) -> None:
        loop = asyncio.get_running_loop()
        started, made = loop.time(), 0
        while not self._stopping or self._unconfirmed:
            due = int((loop.time() - started) * self._per_second) - made
            if not self._stopping and len(self._unconfirmed) < _MOST_UNCONFIRMED:
                self._write(connection, list(self._next(due)))
            made += due
            if connection.closed.done():
                raise ConnectionError(connection.reason)
            await asyncio.sleep(_TICK)
            self._note(connection)

    def _next(self, count: int) -> Iterator[tuple[int, Publication]]:
        for _ in range(count):
            index = len(self.publications)
            seq, number = divmod(index, len(self._topics))
            publication = Publication(self._topics[number], seq, uuid.uuid4().hex, time.time())
            self.publications.append(publication)
            self._unconfirmed[index] = publication
            yield index, publication

    def _write(self, connection: Connection, items: list[tuple[int, Publication]]) -> None:
        packets = []
        for index, each in items:
            payload = json.dumps({"topic": each.topic, "seq": each.seq, "uuid": each.uuid}).encode()
            packets.append(connection.publish(index, each.topic, payload, qos=2))
        if packets:
            connection.write(b"".join(packets))

    def _note(self, connection: Connection) -> None:
        now = time.time()
        for index in connection.acknowledged:
            self._unconfirmed.pop(index).accepted_at = now
        connection.acknowledged.clear()
