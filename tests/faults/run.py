"""A run: two services between brokers and proxies under load, faults one after the other, and what it all recorded.

Every fault hits both services at once, one of them over MQTT 5, one over 3.1.1, each with a mapping at QoS 1 and one
at QoS 2. All four mappings forward the same messages, each to a Kafka topic of its own.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Self

import httpx

from tests.brokers import KafkaNodes, Mosquitto
from tests.brokers.process import free_port
from tests.faults.disk import small_disk
from tests.faults.history import Excuse, Exit, Fault, History, Stored
from tests.faults.load import ROUND_SECONDS, Load, identify
from tests.faults.proxy import Proxy
from tests.faults.tap import WireTap
from tests.faults.watch import Watch
from tests.service import UNMEASURED, Service

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
    from pathlib import Path
    from random import Random

    from tests.brokers import Record
    from tests.faults.history import Cost, MappingSample

PROTOCOLS = {"5": "5", "3.1.1": "3.1.1"}
NODES = 2
PARTITIONS = 4
BUFFER_BYTES = 4 * 1024 * 1024
MEMORY_BESIDE_BUFFERS = 100 * 1024 * 1024
# The leaders of the QoS 1 mappings can move; the QoS 2 mappings have a partition that only node 2 has.
REPLICAS = {"qos1": [[1, 2], [2, 1], [1, 2], [2, 1]], "qos2": [[1], [2], [1], [1]]}
TOPIC_CONFIG = {"message.timestamp.type": "LogAppendTime"}
_POLL = 0.05
# Longer than any invariant allows, so that the checker says what was too slow.
_PATIENCE = 60.0
_FAULT_FREE_SECONDS = 1.0
# The load notes what was accepted so late at most.
_NOTED_SECONDS = 0.1


class RunError(RuntimeError):
    """A run could not go on; the history so far may say why."""


class UnableError(RuntimeError):
    """A fault can't be done on this machine."""


@dataclass(slots=True)
class Brokers:
    """The processes that runs share. Nothing of one run is left for the next but their files."""

    mosquitto: Mosquitto
    kafka: KafkaNodes
    proxied_ports: tuple[int, ...]

    @classmethod
    def make(cls, folder: Path) -> Brokers:
        """Brokers that are not started yet."""
        ports = tuple(free_port() for _ in range(NODES))
        return cls(Mosquitto(folder / "mosquitto"), KafkaNodes(folder / "kafka", advertised=ports), ports)

    def __enter__(self) -> Self:
        self.kafka.start()
        self.mosquitto.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.mosquitto.__exit__()
        self.kafka.__exit__()


class Run:
    """Everything a fault can lay hands on."""

    def __init__(self, name: str, seed: int, folder: Path, brokers: Brokers, *, keep_alive: str) -> None:
        self.folder = folder
        self.mosquitto = brokers.mosquitto
        self.kafka = brokers.kafka
        self.prefix = f"{name}-{uuid.uuid4().hex[:8]}"
        self.services: dict[str, Service] = {}
        self.stores = {label: folder / label / "store" for label in PROTOCOLS}
        self.skipped: list[str] = []
        self.watches: dict[str, Watch] = {}
        self.load = Load(self.mosquitto, self.prefix)
        self.tap = WireTap({self.client_id(mapping): mapping for mapping in self.mappings})
        mosquitto = self.mosquitto
        self.mqtt = Proxy(lambda: (mosquitto.host, mosquitto.port), tap=self.tap.on)
        self.kafka_links = [
            Proxy(partial(_address, behind), port=port)
            for port, behind in zip(brokers.proxied_ports, self.kafka.behind, strict=True)
        ]
        self.history = History(
            name,
            seed,
            time.time(),
            0.0,
            services={label: tuple(f"{label}/{qos}" for qos in REPLICAS) for label in PROTOCOLS},
            memory_limit=MEMORY_BESIDE_BUFFERS + len(REPLICAS) * BUFFER_BYTES,
        )
        self.history.publications = self.load.publications
        self.history.wire = self.tap.events
        self.incarnations: dict[str, int] = {}
        self._keep_alive = keep_alive
        self._forgot_since: dict[str, float] = {}

    # --- names ------------------------------------------------------------------------------------------------------

    @property
    def mappings(self) -> list[str]:
        return [f"{label}/{qos}" for label in PROTOCOLS for qos in REPLICAS]

    def client_id(self, mapping: str) -> str:
        """The MQTT client id of a mapping."""
        label, _, qos = mapping.partition("/")
        return f"{self.prefix}-{label}-{qos}"

    def topic(self, mapping: str) -> str:
        """The Kafka topic of a mapping."""
        return f"{self.prefix}-{mapping.replace('/', '-')}"

    # --- life -------------------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Run services and load; at the end everything is quiet, the services have ended, and the records are read."""
        await asyncio.to_thread(self.mosquitto.restart, wipe=True, kill=True)
        for mapping in self.mappings:
            await self.create_topic(mapping)
        async with AsyncExitStack() as stack:
            for proxy in (self.mqtt, *self.kafka_links):
                await stack.enter_async_context(proxy)
            for store in self.stores.values():
                store.mkdir(parents=True)
                stack.enter_context(small_disk(store))
            for label in PROTOCOLS:
                self.services[label] = await stack.enter_async_context(self._service(label))
            for label, service in self.services.items():
                await service.wait_ready()
                self.watches[label] = Watch(label, service, self.history.samples)
            watching = await stack.enter_async_context(self._watching())
            await self.until(self._all_running, "running for the first time")
            async with self.load.running():
                self.history.begin = time.time()
                await self.until(lambda: self._acknowledged_since(self.history.begin), "the first message through")
                await asyncio.sleep(_FAULT_FREE_SECONDS)
                yield
            await self.until(self._quiet, "quiet at the end")
            await self.watched()
            await watching.aclose()
            await self.terminate()
        self.history.end = time.time()
        await self._collect()

    @asynccontextmanager
    async def _watching(self) -> AsyncIterator[AsyncExitStack]:
        """Watch every service until the block ends, or what it yields is closed."""
        async with AsyncExitStack() as stack:
            for watch in self.watches.values():
                stack.push_async_callback(_cancelled, asyncio.create_task(watch.run()))
            yield stack

    def _service(self, label: str) -> Service:
        mappings = [
            {
                "name": qos,
                "mqtt": {"topic": f"{self.prefix}/#", "qos": int(qos[-1])},
                "kafka": {"topic": self.topic(f"{label}/{qos}")},
                "buffer_bytes": BUFFER_BYTES,
            }
            for qos in REPLICAS
        ]
        servers = ",".join(f"{proxy.host}:{proxy.port}" for proxy in self.kafka_links)
        service = Service(
            self.folder / label,
            mqtt_broker=self.mosquitto,
            kafka_broker=self.kafka,
            forwarding=mappings,
            client_id=f"{self.prefix}-{label}",
            mqtt={"port": self.mqtt.port, "protocol": PROTOCOLS[label], "keep_alive": self._keep_alive},
            env={"MKF_DATABASE_URL": f"sqlite:///{self.stores[label] / 'mkf.db'}", **UNMEASURED},
        )
        service.config["kafka"] = {"config": {"bootstrap.servers": servers}}
        return service

    async def create_topic(self, mapping: str) -> None:
        """Create the Kafka topic of a mapping."""
        replicas = REPLICAS[mapping.partition("/")[2]]
        await self.kafka.create_topic(self.topic(mapping), replicas=replicas, config=TOPIC_CONFIG)

    # --- faults -----------------------------------------------------------------------------------------------------

    async def suffer(self, name: str, cost: Cost, do: Callable[[], Awaitable[None]]) -> None:
        """Do a fault and wait until everything has recovered from it."""
        fault = Fault(name, time.time(), float("inf"), cost)
        self.history.faults.append(fault)
        try:
            await do()
        except UnableError as error:
            self.history.faults.remove(fault)
            self.skipped.append(f"{name}: {error}")
            return
        fault.end = time.time()
        await self.until(lambda: self._recovered(fault.end), f"recovered from {name}")
        if any(each.startswith("kafka_") for each in cost.blames):
            await self._leaders_back(name)
        for mapping, since in self._forgot_since.items():
            until = self.tap.subscribed_at[mapping] + _NOTED_SECONDS
            self.history.excuses.append(Excuse(name, "accepted", since, until, mapping))
        self._forgot_since = {}

    async def _leaders_back(self, name: str) -> None:
        """Wait until Kafka has moved the leaders back and every mapping knows, which is this fault's doing still."""
        try:
            await self.kafka.until_led_as_assigned([self.topic(mapping) for mapping in self.mappings])
        except TimeoutError:
            raise RunError(f"{self.history.name}: Kafka's leaders are not back after {name}") from None
        told = time.time() + ROUND_SECONDS
        await self.until(lambda: self._recovered(told), f"recovered from {name} once its leaders were back")

    def broker_forgets(self) -> None:
        """From now on the MQTT broker has lost its sessions; until they are subscribed again it keeps nothing.

        What was acknowledged before is safe: a session is first in, first out.
        """
        for mapping in self.mappings:
            latest = self.load.find(self.tap.latest_acknowledged[mapping])
            self._forgot_since[mapping] = latest.sent_at

    async def restart(self) -> None:
        """Start every service again and wait until it answers."""
        for service in self.services.values():
            service.start()
        await asyncio.gather(*(service.wait_ready() for service in self.services.values()))

    async def terminate(self) -> None:
        """SIGTERM for every service at once."""
        await asyncio.gather(*(self._terminate(label, service) for label, service in self.services.items()))

    async def _terminate(self, label: str, service: Service) -> None:
        at, started = time.time(), time.monotonic()
        code = await service.sigterm(_PATIENCE)
        self.history.exits.append(Exit(at, label, time.monotonic() - started, code))

    # --- what is waited for -----------------------------------------------------------------------------------------

    async def until(self, condition: Callable[[], bool], what: str, timeout: float = _PATIENCE) -> None:
        """Wait until the condition holds.

        Raises:
            RunError: it does not.
        """
        try:
            async with asyncio.timeout(timeout):
                while not condition():
                    await asyncio.sleep(_POLL)
        except TimeoutError:
            states = {each.mapping: (each.state, each.reason, each.in_flight) for each in self.states()}
            raise RunError(f"{self.history.name}: not {what} after {timeout:g} s: {states}") from None

    async def watched(self) -> None:
        """Wait until every service was looked at once more."""
        await asyncio.gather(*(watch.next() for watch in self.watches.values()))

    def states(self) -> list[MappingSample]:
        """Every mapping as it was last seen."""
        return [each for watch in self.watches.values() for each in watch.latest.mappings]

    def _all_running(self) -> bool:
        states = self.states()
        return len(states) == len(self.mappings) and all(each.state == "running" for each in states)

    def _recovered(self, since: float) -> bool:
        # As seen since then: a look from before shows what was, and the next fault would come before another.
        looks = [watch.latest for watch in self.watches.values()]
        ready = all(look.at > since and look.ready.status == httpx.codes.OK for look in looks)
        return ready and self._all_running() and self._acknowledged_since(since)

    def _acknowledged_since(self, at: float) -> bool:
        """Whether a message that was published after this moment has been acknowledged by every mapping."""
        latest = self.tap.latest_acknowledged
        return len(latest) == len(self.mappings) and all(
            self.load.find(message).sent_at > at for message in latest.values()
        )

    def _quiet(self) -> bool:
        last = self.load.publications[-1].id
        latest = self.tap.latest_acknowledged
        return (
            self._all_running()
            and all(latest[mapping] == last for mapping in self.mappings)
            and all(not each.in_flight for each in self.states())
        )

    # --- the records ------------------------------------------------------------------------------------------------

    async def keep_records(self, mapping: str) -> None:
        """Read what the topic of a mapping holds, because it is going to be deleted."""
        await self._read(mapping)
        self.incarnations[mapping] = self.incarnations.get(mapping, 0) + 1

    async def _collect(self) -> None:
        for mapping in self.mappings:
            await self._read(mapping)
            await self.kafka.delete_topic(self.topic(mapping))
        for label, service in self.services.items():
            if "Traceback" in service.log_path.read_text():
                self.history.tracebacks.append(f"{label}: {service.log_path}")

    async def _read(self, mapping: str) -> None:
        records = await self.kafka.read_all(self.topic(mapping))
        incarnation = self.incarnations.get(mapping, 0)
        self.history.records += _stored(mapping, records, incarnation)


def _stored(mapping: str, records: Sequence[Record], incarnation: int) -> Iterator[Stored]:
    for record in records:
        key = (record.key or b"").decode(errors="replace")
        try:
            (topic, seq), identity = identify(record.value or b"")
        except ValueError:
            topic, seq, identity = key, -1, repr(record.value)
        if topic != key:
            topic, seq = key, -1
        at = record.timestamp / 1000
        yield Stored(mapping, topic, seq, identity, record.partition, record.offset, at, incarnation)


def _address(port: int) -> tuple[str, int]:
    return "127.0.0.1", port


async def _cancelled(task: asyncio.Task[Any]) -> None:
    task.cancel()
    await asyncio.wait([task])
    if not task.cancelled():
        task.result()


@dataclass(frozen=True, slots=True)
class Case:
    """One time that a fault is done: its own random numbers, which time it is, and whether it has to be short."""

    random: Random
    turn: int
    quick: bool

    def seconds(self, least: float, most: float, *, quick: float = 5.0) -> float:
        """How long it lasts."""
        return self.random.uniform(min(least, quick), quick) if self.quick else self.random.uniform(least, most)
