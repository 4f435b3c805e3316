"""What the tests of forwarding share: traffic that is remembered, a service between two brokers, and the verdict."""

from __future__ import annotations

import asyncio
import math
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from tests.checking import History, check_history
from tests.devices import Connection, connected, publish
from tests.service import STATE_TIMEOUT, Service

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
    from pathlib import Path

    from tests.brokers import Kafka, KafkaCluster, Mosquitto, MqttBroker
    from tests.devices import Message

ARRIVAL_TIMEOUT = 90.0
_TICK = 0.02
_UNCONFIRMED = 5_000
# Without a bound a machine slower than the rate gets further behind with each second, and time limits pass.
_MOST_AHEAD = 20_000


class Traffic:
    """Numbered messages on many topics, `<prefix>/0` to `<prefix>/<topics - 1>` in turn; `published` has them all."""

    def __init__(
        self, broker: MqttBroker | Mosquitto, prefix: str, *, topics: int = 100, qos: int = 1, padding: int = 0
    ) -> None:
        self._broker = broker
        self._topics = [f"{prefix}/{n}" for n in range(topics)]
        self._qos = qos
        self._padding = b" " * padding
        self.published: list[Message] = []

    async def burst(self, count: int) -> None:
        """Publish `count` messages as fast as the broker takes them."""
        await publish(self._broker.host, self._broker.port, self.next(count), self._qos)

    @asynccontextmanager
    async def flowing(
        self, per_second: int, *, at_least: int = 0, arrived: Callable[[], Awaitable[int]] | None = None
    ) -> AsyncIterator[None]:
        """Publish at this rate until the block ends and at least so many are out; all are confirmed then.

        With `arrived`, which says how many have come out at the other end, never more than 20,000 are on the way.
        """
        enough = asyncio.Event()
        running = asyncio.create_task(self._flow(per_second, at_least, arrived, enough))
        try:
            yield
            enough.set()
            await running
        finally:
            running.cancel()
            await asyncio.wait([running])

    async def more(self, count: int, timeout: float = 30.0) -> None:
        """Wait until so many more are published by what flows."""
        target = len(self.published) + count
        async with asyncio.timeout(timeout):
            while len(self.published) < target:
                await asyncio.sleep(_TICK)

    async def _flow(
        self, per_second: int, at_least: int, arrived: Callable[[], Awaitable[int]] | None, enough: asyncio.Event
    ) -> None:
        loop = asyncio.get_running_loop()
        async with connected(self._broker.host, self._broker.port) as connection:
            last, due, sent = loop.time(), 0.0, 0
            most = math.inf if arrived is None else _MOST_AHEAD
            while not enough.is_set() or sent < at_least:
                now = loop.time()
                due, last = min(due + (now - last) * per_second, _UNCONFIRMED), now
                if sent >= most and arrived is not None:
                    most = await arrived() + _MOST_AHEAD
                count = int(min(due, most - sent))
                self._write(connection, self.next(count))
                due, sent = due - count, sent + count
                while connection.in_flight > _UNCONFIRMED:
                    if connection.closed.done():
                        raise ConnectionError(connection.reason)
                    await connection.changed()
                await asyncio.sleep(_TICK)
            await connection.flushed()
        if connection.refused:
            raise ConnectionError(connection.refused[0])

    def _write(self, connection: Connection, messages: list[Message]) -> None:
        if messages:
            connection.write(
                b"".join([connection.publish(0, topic, payload, qos=self._qos) for topic, payload in messages])
            )

    def next(self, count: int) -> list[Message]:
        """Make the next messages; whoever takes them publishes them."""
        first, topics = len(self.published), self._topics
        fresh = [(topics[n % len(topics)], b"%d%b" % (n, self._padding)) for n in range(first, first + count)]
        self.published += fresh
        return fresh


@dataclass
class Stage:
    """A service between an MQTT broker and a Kafka, over one version of MQTT. Mappings are called "m"."""

    folder: Path
    mosquitto: MqttBroker | Mosquitto
    kafka: KafkaCluster | Kafka
    kafka_topic: Callable[..., Awaitable[str]]
    unique: str
    protocol: str

    @property
    def client_id(self) -> str:
        """The client id of the mapping "m"."""
        return f"{self.unique}-m"

    def mapping(self, kafka_topic: str, *, name: str = "m", **options: Any) -> dict[str, Any]:
        """Make a mapping of everything under the test's own topic, with whole sections added or replaced by options."""
        mqtt = {"topic": f"{self.unique}/#", **options.pop("mqtt", {})}
        return {"name": name, "mqtt": mqtt, "kafka": {"topic": kafka_topic, **options.pop("kafka", {})}, **options}

    def service(self, *mappings: Mapping[str, Any], name: str = "service", **options: Any) -> Service:
        """Make a service with these mappings; `async with` starts it."""
        return Service(
            self.folder / name,
            mqtt_broker=self.mosquitto,
            kafka_broker=self.kafka,
            forwarding=mappings,
            client_id=self.unique,
            mqtt={"protocol": self.protocol, **options.pop("mqtt", {})},
            **options,
        )

    @asynccontextmanager
    async def running(self, *mappings: Mapping[str, Any], **options: Any) -> AsyncIterator[Service]:
        """Run a service until the block ends, once all its mappings are running."""
        async with self.service(*mappings, **options) as service:
            await service.wait_ready()
            for mapping in mappings:
                await service.wait_state(mapping["name"])
            yield service
        # A crash that was survived is a fault all the same.
        assert "Traceback" not in service.log_path.read_text(), service.log_path

    def traffic(self, **options: Any) -> Traffic:
        """Make traffic that matches `mapping`."""
        return Traffic(self.mosquitto, self.unique, **options)

    async def publish(self, messages: list[Message], qos: int = 1, **options: Any) -> None:
        """Publish these messages and wait until the broker has them."""
        await publish(self.mosquitto.host, self.mosquitto.port, messages, qos, **options)

    async def outcome(
        self, service: Service, kafka_topic: str, published: list[Message], timeout: float = ARRIVAL_TIMEOUT
    ) -> History:
        """Wait until everything is in Kafka and nothing is under way, and compare; what is lost is in the answer."""
        deadline = asyncio.get_running_loop().time() + timeout
        while True:
            await self._held(kafka_topic, len(published), deadline)
            # A session is first in, first out: once its last message is through, no repeat can follow.
            await quiet(service)
            history = check_history(await self.kafka.read_all(kafka_topic), published)
            if not history.lost or asyncio.get_running_loop().time() > deadline:
                return history
            await asyncio.sleep(0.2)

    async def arrived(self, kafka_topic: str) -> int:
        """Return how many records Kafka has."""
        return sum((await self.kafka.end_offsets(kafka_topic)).values())

    async def _held(self, kafka_topic: str, count: int, deadline: float) -> None:
        while await self.arrived(kafka_topic) < count:
            if asyncio.get_running_loop().time() > deadline:
                return
            await asyncio.sleep(0.1)


async def retrying(service: Service, code: str, timeout: float = STATE_TIMEOUT) -> dict[str, Any]:
    """Wait until the mapping "m" says that it is retrying for this reason."""

    def says_so(status: dict[str, Any]) -> bool:
        return status["state"] == "retrying" and str(status["reason"]).startswith(f"{code}: ")

    return await service.wait_status("m", says_so, f"m retrying with {code}", timeout)


async def quiet(service: Service, name: str = "m", timeout: float = 60.0) -> dict[str, Any]:
    """Wait until the mapping runs and nothing is in flight; its books must balance (design.md, invariant 8)."""

    def idle(status: dict[str, Any]) -> bool:
        check_books(status)
        return bool(status["state"] == "running" and status["in_flight"]["messages"] == 0)

    return await service.wait_status(name, idle, f"{name} running with nothing in flight", timeout)


def check_books(status: dict[str, Any]) -> None:
    """Each message received is delivered, dead-lettered, dropped or in flight, at any moment."""
    counters = status["counters"]
    accounted = counters["delivered"] + counters["dead_lettered"] + sum(counters["dropped"].values())
    assert counters["received"] == accounted + status["in_flight"]["messages"], status


async def act(service: Service, action: str, name: str = "m") -> None:
    """Pause, resume, restart or reset-session."""
    response = await service.api.post(f"/api/v1/mappings/{quote(name, safe='')}/{action}")
    assert response.status_code == 202, response.text


async def pause(service: Service, name: str = "m") -> None:
    """Pause, and wait until it is paused."""
    await act(service, "pause", name)
    await service.wait_state(name, "paused")


async def resume(service: Service, name: str = "m") -> None:
    """Resume, and wait until it runs."""
    await act(service, "resume", name)
    await service.wait_state(name)


async def edit(service: Service, patch: dict[str, Any], name: str = "m") -> dict[str, Any]:
    """Merge-patch a running mapping, and wait until it runs again with that."""
    before = await service.status(name)
    await patched(service, patch, name)

    def runs_again(status: dict[str, Any]) -> bool:
        return bool(status["state"] == "running" and status["since"] != before["since"])

    return await service.wait_status(name, runs_again, f"{name} running again after the change")


async def patched(service: Service, patch: dict[str, Any], name: str = "m") -> None:
    """Merge-patch a mapping."""
    response = await service.api.patch(f"/api/v1/mappings/{quote(name, safe='')}", json=patch)
    assert response.status_code == 200, response.text


__all__ = ["Stage", "Traffic", "act", "check_books", "edit", "patched", "pause", "quiet", "resume", "retrying"]
