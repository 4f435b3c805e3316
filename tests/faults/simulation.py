"""The real forwarder between a simulated broker and a fake Kafka, in virtual time, and a history that happens to it."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, get_args

import pytest

from server.core.connections import MqttConnection
from server.core.kafka_options import translate
from server.core.lifecycle import State
from server.core.mapping import Mapping
from server.core.subscription import WireProtocol
from server.kafka.producer import Cluster
from server.runtime.forwarder import Forwarder
from server.runtime.ledger import Ledger
from server.runtime.session import Broker
from tests.fakekafka import CONFIRM, STALL, FakeKafka
from tests.fakemqtt import NotingStore
from tests.faults.simulated_broker import Dialler
from tests.virtualtime import now, settled, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from tests.faults.simulated_broker import SimulatedBroker

Step = tuple[Any, ...]
HEAL_SECONDS = 900.0


@dataclass
class Line:
    """A forwarder between a simulated broker and a fake Kafka."""

    broker: SimulatedBroker
    kafka: FakeKafka
    forwarder: Forwarder
    spec: Mapping
    task: asyncio.Task[None]
    history: list[Step] = field(default_factory=list)

    async def play(self, *steps: Step) -> None:
        """Let these things happen, one after the other."""
        for step in steps:
            self.history.append(step)
            await self._play(*step)
            self.check_books()

    async def _play(self, what: str, argument: Any = None) -> None:
        broker = self.broker
        deeds: dict[str, Callable[[], Awaitable[object] | None]] = {
            "publish": lambda: broker.publish(argument) if broker.subscribed else None,
            "wait": lambda: asyncio.sleep(argument),
            "kafka stalls": self.kafka_stalls,
            "kafka answers": self.kafka_answers,
            "mute": broker.mute,
            "deaf": broker.deaf,
            "cut": lambda: broker.cut(reset=argument),
            "cut within a packet": broker.cut_within_a_packet,
            "taken over": lambda: broker.take_over(*argument, told=True),
            "taken over in silence": lambda: broker.take_over(*argument, told=False),
            "held unnoticed": lambda: broker.hold_unnoticed(*argument),
            "session lost": broker.lose_session,
            "paused and resumed": self.run_again,
        }
        going_on = deeds[what]()
        if going_on is not None:
            await going_on
        await settled()

    def kafka_stalls(self) -> None:
        """Answer nothing from now on."""
        self.kafka.judge = lambda _: STALL

    def kafka_answers(self) -> None:
        """Confirm what waits, and everything from now on."""
        self.kafka.judge = lambda _: CONFIRM
        for sent in self.kafka.sent:
            sent.answer()

    async def run_again(self) -> None:
        """Pause and resume."""
        self.forwarder.stop()
        await self.task
        assert self.forwarder.state is State.PAUSED
        self.task = asyncio.create_task(self.forwarder.run(self.spec, self.forwarder.generation + 1))

    async def heal(self) -> None:
        """Let everything work, until the broker has nothing left and nothing is on its way."""
        self.kafka_answers()
        end = now() + HEAL_SECONDS
        while not self._is_done():
            assert now() < end, f"not done: {self}"
            await asyncio.sleep(0.05)
        self.check_books()

    def _is_done(self) -> bool:
        assert not self.task.done(), self.forwarder.reason
        window = self.forwarder.intake.window
        return self.broker.is_empty and window.is_empty and self.forwarder.state is State.RUNNING

    def __str__(self) -> str:
        forwarder = self.forwarder
        return f"{self.broker}, {forwarder.state}: {forwarder.reason}, {forwarder.tally}, {forwarder.intake.in_flight}"

    def check_books(self) -> None:
        tally = self.forwarder.tally
        accounted = tally.delivered + tally.dead_lettered + tally.dropped.total()
        assert tally.received == accounted + self.forwarder.intake.in_flight

    @property
    def records(self) -> Counter[bytes]:
        """How often each payload is in Kafka."""
        return Counter(self.kafka.values())

    @property
    def lost(self) -> list[int]:
        """The messages that nobody else acknowledged, and that are not in Kafka."""
        records, elsewhere = self.records, self.broker.traffic.elsewhere
        return [n for n in range(self.broker.accepted) if n not in elsewhere and not records[b"%d" % n]]


@asynccontextmanager
async def forwarding(broker: SimulatedBroker) -> AsyncIterator[Line]:
    """Run the mapping m from t to k until the block ends; nothing of it may be left then."""
    kafka, protocol = FakeKafka(), broker.dialect.protocol
    options = {"host": "simulated", "client_id": "base", "protocol": protocol}
    connectors = dict.fromkeys(get_args(WireProtocol), Dialler(broker))
    source = Broker(MqttConnection.model_validate(options), connectors)
    spec = Mapping.model_validate({"name": "m", "mqtt": {"topic": "t", "qos": broker.qos}, "kafka": {"topic": "k"}})
    ledger = Ledger(NotingStore(lambda _: None).as_store())
    with pytest.MonkeyPatch.context() as patcher:
        kafka.install(patcher)
        forwarder = Forwarder("m", source, Cluster("kafka:9092", translate({})), ledger)
        forwarder.intake.budget = 10**8
        line = Line(broker, kafka, forwarder, spec, asyncio.create_task(forwarder.run(spec, 1)))
        try:
            await until(lambda: forwarder.state is State.RUNNING)
            yield line
        finally:
            line.task.cancel()
            await asyncio.wait([line.task])
            broker.end()
            await settled()
