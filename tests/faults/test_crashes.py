"""An exception at every await point of the forwarder's and the supervisor's tasks, one at a time.

A mapping whose task crashed is started again with a reason, or FAILED; nothing is lost, no task is left, and the books
balance. It is never passed over in silence.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Coroutine
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import pytest
import structlog

import server
from server.core.connections import MqttConnection
from server.core.kafka_options import translate
from server.core.lifecycle import State
from server.core.mapping import Mapping
from server.core.subscription import WireProtocol
from server.kafka.producer import Cluster
from server.runtime.session import Broker
from server.runtime.supervisor import Supervisor
from server.store.stored import StoredMapping
from tests.fakebroker import Dialect
from tests.fakekafka import CONFIRM, STALL, FakeKafka
from tests.fakemqtt import NotingStore
from tests.faults.packet_ids import CountsUp
from tests.faults.simulated_broker import Dialler, SimulatedBroker
from tests.virtualtime import in_virtual_time, now, settled, until

if TYPE_CHECKING:
    from server.runtime.forwarder import Forwarder

PATIENCE_SECONDS = 120.0
FEWEST_WAITS, MOST_WAITS = 100, 2_000
_OURS = str(Path(server.__file__).parent)


class CrashError(Exception):
    """Thrown where our own code waits."""


@dataclass
class Crash:
    """Breaks one of our tasks when they have waited `at` times, all together, since `arm`."""

    at: int
    waits: int = 0
    where: str = ""
    _armed: bool = False

    def arm(self) -> None:
        """Count from now on, in tasks that are made from now on."""
        asyncio.get_running_loop().set_task_factory(self._task)
        self._armed = True

    @property
    def happened(self) -> bool:
        return bool(self.where)

    def due(self, where: str) -> bool:
        """Whether the crash is now; called when a task goes on after it waited."""
        if not self._armed or self.happened:
            return False
        self.waits += 1
        if self.waits == self.at:
            self.where = where
        return self.happened

    def _task(self, loop: asyncio.AbstractEventLoop, coroutine: Any, **options: Any) -> asyncio.Task[Any]:
        code = getattr(coroutine, "cr_code", None)
        if code is not None and code.co_filename.startswith(_OURS):
            coroutine = _Breakable(coroutine, self)
        return asyncio.Task(coroutine, loop=loop, **options)


class _Breakable(Coroutine[Any, Any, Any]):
    """One of our coroutines, which a crash may end where it waits."""

    def __init__(self, coroutine: Coroutine[Any, Any, Any], crash: Crash) -> None:
        self._coroutine = coroutine
        self._crash = crash
        self._waited = False
        self.__qualname__ = getattr(coroutine, "__qualname__", "")

    def send(self, value: Any) -> Any:
        if self._waited and self._crash.due(f"{self.__qualname__}: {_innermost(self._coroutine)}"):
            return self._coroutine.throw(CrashError("injected"))
        self._waited = True
        return self._coroutine.send(value)

    def throw(self, *error: Any) -> Any:
        return self._coroutine.throw(*error)

    def close(self) -> None:
        self._coroutine.close()

    def __await__(self) -> Any:
        return self._coroutine.__await__()


def _innermost(coroutine: Any) -> str:
    """Where our code waits, as deep as it is our code."""
    found = ""
    while coroutine is not None and getattr(coroutine, "cr_frame", None) is not None:
        if coroutine.cr_code.co_filename.startswith(_OURS):
            found = f"{Path(coroutine.cr_code.co_filename).name}:{coroutine.cr_frame.f_lineno}"
        coroutine = coroutine.cr_await
    return found


class MemoryStore(NotingStore):
    """What the supervisor needs of a store, without a thread and a disk."""

    def __init__(self) -> None:
        super().__init__(lambda _: None)
        self.stored: dict[str, StoredMapping] = {}
        self.revision = 0

    async def mappings(self) -> list[StoredMapping]:
        await asyncio.sleep(0)
        return list(self.stored.values())

    async def ping(self) -> None:
        await asyncio.sleep(0)

    def put(self, spec: Mapping) -> None:
        """What the API does for every change."""
        self.revision += 1
        before = self.stored.get(spec.name)
        generation = before.generation + 1 if before else 1
        at = datetime.now(UTC)
        self.stored[spec.name] = StoredMapping(spec, generation, "api", at, at)


@dataclass
class Plant:
    """A supervisor between a simulated broker and a fake Kafka, started again as a process is when it crashes."""

    broker: SimulatedBroker
    kafka: FakeKafka = field(default_factory=lambda: FakeKafka(sinks=2))
    store: MemoryStore = field(default_factory=MemoryStore)
    said: set[str] = field(default_factory=set)
    exits: int = 0

    def __post_init__(self) -> None:
        self._start()

    def _start(self) -> None:
        options = {"host": "simulated", "client_id": "base", "protocol": self.broker.dialect.protocol}
        connectors = dict.fromkeys(get_args(WireProtocol), Dialler(self.broker))
        source = Broker(MqttConnection.model_validate(options), connectors)
        cluster = Cluster("kafka:9092", translate({}))
        self.supervisor = Supervisor(self.store.as_store(), source, cluster, memory_budget=10**8)
        self.task = asyncio.create_task(self.supervisor.run(), name="supervisor")

    @property
    def forwarder(self) -> Forwarder | None:
        return next(iter(self.supervisor.forwarders()), None)

    def want(self, **spec: Any) -> None:
        """Ask for the mapping m as the API does."""
        document = {"name": "m", "mqtt": {"topic": "t"}, "kafka": {"topic": "k"}, **spec}
        self.store.put(Mapping.model_validate(document))
        self.supervisor.wake()

    async def reach(self, state: State) -> None:
        """Wait until the mapping is in this state, resuming it as an operator would if it FAILED by the crash."""
        end = now() + PATIENCE_SECONDS
        while (there := self.supervisor.state("m")) is not state or self.task.done():
            await self._look(there)
            assert now() < end, f"{there}, not {state}; said: {self.said}"
            await asyncio.sleep(0.01)
        await self._look(there)

    async def empty(self) -> None:
        """Wait until the broker has no message left."""
        end = now() + PATIENCE_SECONDS
        while not self.broker.is_empty:
            await self.reach(State.RUNNING)
            assert now() < end, self.broker
            await asyncio.sleep(0.05)

    def delete(self) -> None:
        """Delete the mapping as the API does: its session is to be ended."""
        del self.store.stored["m"]
        self.store.revision += 1
        self.store.rows = {name: replace(row, removal_pending=True) for name, row in self.store.rows.items()}
        self.supervisor.wake()

    async def gone(self) -> None:
        """Wait until nothing of the mapping is left, at the broker neither."""
        end = now() + PATIENCE_SECONDS
        while self.store.rows or self.forwarder is not None:
            await self._look(self.supervisor.state("m"))
            assert now() < end, f"{self.store.rows}, {self.forwarder}"
            await asyncio.sleep(0.05)

    async def _look(self, state: State) -> None:
        """Note what an operator sees, and do what an operator does."""
        forwarder = self.forwarder
        if forwarder is not None:
            tally = forwarder.tally
            accounted = tally.delivered + tally.dead_lettered + tally.dropped.total()
            assert tally.received == accounted + forwarder.intake.in_flight
            if forwarder.last_error is not None:
                self.said.add(f"{forwarder.last_error.reason.code}: {forwarder.last_error.reason.detail}")
        if self.task.done():
            await self.exit()
            self._start()
        elif state is State.FAILED and "m" in self.store.stored:
            self.store.put(self.store.stored["m"].spec)
            self.supervisor.wake()

    async def exit(self) -> None:
        """End as the process does; a crash of the supervisor itself is what ends it."""
        self.task.cancel()
        await asyncio.wait([self.task])
        if not self.task.cancelled() and self.task.exception() is not None:
            self.said.add(f"the process ended: {self.task.exception()!r}")
        with contextlib.suppress(CrashError):
            await self.supervisor.shutdown()


async def life(plant: Plant) -> None:
    """What a mapping lives through: messages, a lost connection, a Kafka that fails, a change, a pause, the end."""
    broker, kafka = plant.broker, plant.kafka
    plant.want()
    await plant.reach(State.RUNNING)
    broker.publish(3)
    await until(lambda: broker.is_empty)
    kafka.judge = lambda _: STALL
    broker.publish(3)
    await asyncio.sleep(0.1)
    await broker.cut()
    kafka.judge = lambda _: 29
    await asyncio.sleep(2.0)
    kafka.judge = lambda _: CONFIRM
    for sent in kafka.sent:
        sent.answer()
    await plant.reach(State.RUNNING)
    plant.want(mqtt={"topic": ["t", "other"]})
    await asyncio.sleep(0.1)
    await plant.reach(State.RUNNING)
    broker.publish(2)
    plant.want(paused=True)
    await plant.reach(State.PAUSED)
    plant.want()
    await plant.reach(State.RUNNING)
    await plant.empty()
    kafka.judge = lambda _: STALL
    broker.publish(2)
    await asyncio.sleep(0.1)
    plant.want(paused=True)  # a drain that runs out of time
    await plant.reach(State.PAUSED)
    kafka.judge = lambda _: CONFIRM
    plant.want()
    await plant.empty()
    plant.delete()
    await plant.gone()


@in_virtual_time
async def crashed(crash: Crash, *, protocol: Literal["5", "3.1.1"]) -> None:
    """Live with a crash, and check what is left."""
    with structlog.testing.capture_logs() as logs, pytest.MonkeyPatch.context() as patcher:
        plant_broker = SimulatedBroker(CountsUp(), Dialect(protocol))
        crash.arm()
        plant = Plant(plant_broker)
        plant.kafka.install(patcher)
        try:
            await life(plant)
        finally:
            await plant.exit()
            plant_broker.end()
            await settled()
    if crash.happened:
        told = [each for each in plant.said if "injected" in each] + [log for log in logs if "crashed" in log["event"]]
        assert told, f"silence after {crash.where}"
    records = Counter(plant.kafka.values())
    assert [n for n in range(plant_broker.accepted) if not records[b"%d" % n]] == [], crash.where
    assert plant.kafka.open_producers == 0, crash.where


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
def test_a_crash_wherever_our_tasks_wait_is_told_and_survived(protocol: Literal["5", "3.1.1"]) -> None:
    problems: list[str] = []
    for at in range(1, MOST_WAITS):
        crash = Crash(at)
        try:
            crashed(crash, protocol=protocol)
        except (AssertionError, RuntimeError) as error:
            problems.append(f"{at} {crash.where}: {error}")
        if not crash.happened:
            break
    assert at > FEWEST_WAITS
    assert at < MOST_WAITS - 1
    assert problems == []
