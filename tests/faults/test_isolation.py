"""One mapping whose target is dead, next to 49 healthy ones: these notice nothing."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from tests.checking import check_history
from tests.faults.mock_kafka import MockKafka
from tests.forwarding import Stage, act

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

    from tests.brokers import KafkaCluster, MqttBroker
    from tests.forwarding import Traffic
    from tests.service import Service

HEALTHY = 49
PER_SECOND = 4 * HEALTHY
WINDOW_SECONDS = 3.0
IN_TIME_SECONDS = 3.0
KEPT = 0.95
BACKLOG = 2_000


class Plant:
    """The healthy mappings h0 to h48 under steady traffic, and dead ones that wake up beside them."""

    def __init__(self, stage: Stage, topic: str, service: Service, traffic: Traffic) -> None:
        self.stage = stage
        self.topic = topic
        self.service = service
        self._traffic = traffic
        self._alone = 0.0

    async def in_time(self) -> float:
        """The share of what is published in a while that Kafka has soon after."""
        before = await self._held()
        published_before = len(self._traffic.published)
        await asyncio.sleep(WINDOW_SECONDS)
        published = len(self._traffic.published)
        deadline = asyncio.get_running_loop().time() + IN_TIME_SECONDS
        while (held := await self._held()) < published and asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(0.05)
        assert published > published_before
        return min(1.0, (held - before) / (published - published_before))

    async def _held(self) -> int:
        return sum((await self.stage.kafka.end_offsets(self.topic)).values())

    async def beside(self, name: str, state: str) -> float:
        """Wake a dead mapping up, with messages that wait for it, and see how the others do compared to before."""
        self._alone = self._alone or await self.in_time()
        await act(self.service, "resume", name)
        await self.service.wait_state(name, state)
        await self.stage.publish([(f"{name}/{self.stage.unique}", b"%d" % n) for n in range(BACKLOG)])
        together = await self.in_time()
        assert (await self.service.status(name))["counters"]["delivered"] == 0
        return together / self._alone


@asynccontextmanager
async def plant(stage: Stage, *dead: dict[str, Any]) -> AsyncIterator[Plant]:
    """Run it; at the end all that was published for the healthy ones has arrived once and in order."""
    topic = await stage.kafka_topic("healthy", partitions=3)
    healthy = [stage.mapping(topic, name=f"h{n}", mqtt={"topic": f"{stage.unique}/{n}"}) for n in range(HEALTHY)]
    asleep = [
        stage.mapping(each.pop("topic"), mqtt={"topic": f"{each['name']}/{stage.unique}"}, paused=True, **each)
        for each in dead
    ]
    async with stage.service(*healthy, *asleep) as service:
        await service.wait_ready()
        for mapping in healthy:
            await service.wait_state(mapping["name"])
        traffic = stage.traffic(topics=HEALTHY)
        async with traffic.flowing(PER_SECOND):
            await traffic.more(PER_SECOND)
            yield Plant(stage, topic, service, traffic)
        records = await stage.kafka.wait_for_records(topic, len(traffic.published))
        assert check_history(records, traffic.published).problems() == []
        for mapping in healthy:
            status = await service.status(mapping["name"])
            assert (status["state"], status["counters"]["reconnects"]) == ("running", 0)


async def test_a_missing_topic_or_poison_holds_up_no_other_mapping(
    tmp_path: Path,
    mosquitto: MqttBroker,
    kafka: KafkaCluster,
    kafka_topic: Callable[..., Awaitable[str]],
    unique: str,
) -> None:
    stage = Stage(tmp_path, mosquitto, kafka, kafka_topic, unique, "5")
    missing = {"name": "missing", "topic": f"missing-{unique}"}
    tight = await kafka_topic("tight", config={"max.message.bytes": "100"})
    poisoned = {"name": "poisoned", "topic": tight, "kafka": {"headers": {"why": "too large" * 20}}}
    async with plant(stage, missing, poisoned) as running:
        assert await running.beside("missing", "retrying") > KEPT
        assert await running.beside("poisoned", "running") > KEPT
        await running.service.wait_state("poisoned", "failed")


async def test_a_partition_without_a_leader_holds_up_no_other_mapping(
    tmp_path: Path, mosquitto: MqttBroker, unique: str
) -> None:
    """Only a cluster of several nodes has one; librdkafka's mock plays it."""
    with MockKafka() as kafka:

        async def create(name: str, **options: Any) -> str:
            return await kafka.create_topic(f"{name}-{unique}", **options)

        stage = Stage(tmp_path, mosquitto, kafka, create, unique, "5")
        leaderless = await create("leaderless", partitions=2)
        kafka.take_leader(leaderless, 0)
        kafka.take_leader(leaderless, 1)
        async with plant(stage, {"name": "leaderless", "topic": leaderless}) as running:
            assert await running.beside("leaderless", "running") > KEPT
            status = await running.service.wait_state("leaderless", "retrying")
            assert status["reason"].startswith("kafka_no_leader: ")
