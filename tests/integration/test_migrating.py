"""docs/migrating-from-the-seed.md, step by step, with a player of the seed: one session, MQTT 3.1.1, QoS 2, CRC32."""

from __future__ import annotations

import asyncio
import zlib
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any

import aiomqtt
from aiokafka import AIOKafkaProducer

from tests.checking import check_history
from tests.devices import session_exists
from tests.forwarding import Traffic, quiet
from tests.integration.test_commands import mkf
from tests.service import Service

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

    from tests.brokers import KafkaCluster, MqttBroker

PARTITIONS = 3


class Seed:
    """What the Rust program does: everything through one session named `client_id`, at QoS 2."""

    def __init__(self, mqtt: MqttBroker, kafka: KafkaCluster, client_id: str, topic_filter: str, topic: str) -> None:
        self._mqtt, self._kafka = mqtt, kafka
        self._client_id, self._filter, self._topic = client_id, topic_filter, topic
        self.published = 0

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Forward until the block ends."""
        client = aiomqtt.Client(
            self._mqtt.host,
            self._mqtt.port,
            identifier=self._client_id,
            protocol=aiomqtt.ProtocolVersion.V311,
            clean_session=False,
        )
        async with AIOKafkaProducer(bootstrap_servers=self._kafka.bootstrap) as producer, client:
            await client.subscribe(self._filter, qos=2)
            forwarding = asyncio.create_task(self._forward(client, producer))
            try:
                yield
            finally:
                forwarding.cancel()
                await asyncio.wait([forwarding])

    async def _forward(self, client: aiomqtt.Client, producer: AIOKafkaProducer) -> None:
        async for message in client.messages:
            key = str(message.topic).encode()
            partition = zlib.crc32(key) % PARTITIONS
            sent = await producer.send(self._topic, message.payload, key=key, partition=partition)
            sent.add_done_callback(self._confirmed)

    def _confirmed(self, sent: asyncio.Future[Any]) -> None:
        sent.result()
        self.published += 1

    async def caught_up(self, messages: int) -> None:
        """Wait until it has published so many."""
        async with asyncio.timeout(60):
            while self.published < messages:
                await asyncio.sleep(0.02)


async def test_from_the_seed_to_this_service_without_a_gap(
    tmp_path: Path,
    mosquitto: MqttBroker,
    kafka: KafkaCluster,
    kafka_topic: Callable[..., Awaitable[str]],
    unique: str,
) -> None:
    topic = await kafka_topic(partitions=PARTITIONS)
    topic_filter = f"{unique}/#"
    seed = Seed(mosquitto, kafka, unique, topic_filter, topic)
    traffic = Traffic(mosquitto, unique, topics=20)
    service = Service(
        tmp_path / "service",
        mqtt_broker=mosquitto,
        kafka_broker=kafka,
        client_id=unique,
        forwarding=[{"name": "m", "mqtt": {"topic": topic_filter}, "kafka": {"topic": topic}}],
        kafka={"config": {"partitioner": "consistent_random"}},
    )
    folder = service.folder
    env = {"CONFIG_FILE": str(folder / "config.yaml"), "MKF_DATABASE_URL": f"sqlite:///{folder / 'mkf.db'}"}
    async with AsyncExitStack() as stack:
        async with seed.running(), traffic.flowing(500):
            await traffic.more(200)
            await stack.enter_async_context(service)  # step 2
            assert mkf(folder, "validate", "config.yaml").returncode == 0  # step 1: only now the file is written
            await service.wait_ready()
            await service.wait_state("m")  # step 3
            await traffic.more(500)
            await seed.caught_up(len(traffic.published))  # step 4
        assert await session_exists(mosquitto.host, mosquitto.port, unique, "3.1.1")

        refused = mkf(folder, "session", "end", f"{unique}-m", **env)
        assert refused.returncode == 2
        assert "it is the session of the mapping 'm'; pause that and call its reset-session" in refused.stderr
        ended = mkf(folder, "session", "end", unique, **env)  # step 5
        assert (ended.returncode, ended.stderr) == (0, "")
        assert ended.stdout.startswith(f"{mosquitto.host}:{mosquitto.port} has no session {unique!r} any more")
        assert not await session_exists(mosquitto.host, mosquitto.port, unique, "3.1.1")

        await traffic.burst(300)
        await kafka.wait_for_records(topic, seed.published + 300)
        await quiet(service)
    records = await kafka.read_all(topic)
    history = check_history(records, traffic.published)
    # Not the order: what only the seed had may come after what both had.
    assert (history.lost, history.unexpected, history.scattered) == ([], [], [])
    assert len(history.repeats) <= seed.published
    assert all(record.partition == zlib.crc32(record.key or b"") % PARTITIONS for record in records)


async def test_without_the_broker_ending_a_session_says_so(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("mqtt: {host: 127.0.0.1, port: 1}\nkafka: {}\n")
    ended = mkf(tmp_path, "session", "end", "seed")
    assert ended.returncode == 1
    assert "the session 'seed' was not ended: " in ended.stderr
    assert "127.0.0.1:1" in ended.stderr
    assert not (tmp_path / "data").exists()
    nobody = mkf(tmp_path, "session", "end", "")
    assert nobody.returncode == 2
    assert "a session without a client id ends with its connection" in nobody.stderr
