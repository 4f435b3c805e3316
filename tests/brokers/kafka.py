"""A real one-node Kafka (KRaft) from its jars, and what tests do with its topics."""

from __future__ import annotations

import asyncio
import shutil
import uuid
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewPartitions, NewTopic
from aiokafka.errors import for_code

from tests.brokers.process import BrokerError, Child, accepts, free_port

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping, Sequence

LIBS = Path(__file__).parents[2] / ".cache" / "kafka" / "libs"
START_TIMEOUT = 60.0
STOP_TIMEOUT = 45.0
START_ATTEMPTS = 5
TOPIC_TIMEOUT = 20.0
READ_TIMEOUT = 60.0
STARTED = "Kafka Server started"

LOGGING = """\
Configuration:
  Appenders:
    Console:
      name: console
      PatternLayout:
        pattern: "%d{HH:mm:ss.SSS} %p %c{1} %m%n"
  Loggers:
    Root:
      level: WARN
      AppenderRef:
        - ref: console
    Logger:
      - name: kafka.server.KafkaRaftServer
        level: INFO
"""


@dataclass(frozen=True, slots=True)
class Record:
    """A record as Kafka holds it."""

    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...]
    timestamp: int


class KafkaCluster:
    """A Kafka that runs somewhere: topics and what is in them. Every call has a deadline."""

    def __init__(self, bootstrap: str = "") -> None:
        self._bootstrap = bootstrap

    @property
    def bootstrap(self) -> str:
        """`host:port`."""
        return self._bootstrap

    @property
    def host(self) -> str:
        return self.bootstrap.rpartition(":")[0]

    @property
    def port(self) -> int:
        return int(self.bootstrap.rpartition(":")[2])

    async def create_topic(
        self,
        name: str,
        partitions: int = 1,
        config: Mapping[str, str] | None = None,
        *,
        replicas: Sequence[Sequence[int]] | None = None,
    ) -> str:
        """Create a topic and wait until every partition has a leader; returns its name.

        `replicas` are the nodes of each partition, the preferred leader first, in place of `partitions` on any node.
        """
        async with asyncio.timeout(TOPIC_TIMEOUT):
            async with self._admin() as admin:
                configs = dict(config or {})
                if replicas is None:
                    new = NewTopic(name, partitions, 1, topic_configs=configs)
                else:
                    partitions = len(replicas)
                    assignments = {number: list(nodes) for number, nodes in enumerate(replicas)}
                    new = NewTopic(name, -1, -1, replica_assignments=assignments, topic_configs=configs)
                _check(await admin.create_topics([new]), "topic_errors")
            await self._until_led(name, partitions)
        return name

    async def add_partitions(self, name: str, total: int) -> None:
        """Raise the number of partitions to `total`."""
        async with asyncio.timeout(TOPIC_TIMEOUT):
            async with self._admin() as admin:
                response = await admin.create_partitions({name: NewPartitions(total)})
                _check(response, "topic_errors")
            await self._until_led(name, total)

    async def delete_topic(self, name: str) -> None:
        """Delete a topic and wait until it is gone."""
        async with asyncio.timeout(TOPIC_TIMEOUT), self._admin() as admin:
            _check(await admin.delete_topics([name]), "topic_error_codes")
            while name in await admin.list_topics():
                await asyncio.sleep(0.05)

    async def until_led_as_assigned(self, topics: Sequence[str]) -> None:
        """Wait until the preferred replica leads every partition, so that Kafka has no reason to move one."""

        def preferred(topic: Mapping[str, Any]) -> bool:
            partitions = topic["partitions"]
            return bool(partitions) and all(each["leader"] == each["replicas"][0] for each in partitions)

        async with asyncio.timeout(TOPIC_TIMEOUT):
            await self._until_all(topics, preferred)

    async def set_topic_config(self, name: str, config: Mapping[str, str]) -> None:
        """Change settings of a topic, such as max.message.bytes."""
        from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType  # noqa: PLC0415

        async with asyncio.timeout(TOPIC_TIMEOUT), self._admin() as admin:
            await admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, name, configs=dict(config))])

    async def end_offsets(self, topic: str) -> dict[int, int]:
        """Return the offset after the last record, by partition."""
        async with asyncio.timeout(TOPIC_TIMEOUT), self._consumer(topic) as (consumer, partitions):
            return {at.partition: offset for at, offset in (await consumer.end_offsets(partitions)).items()}

    async def read_all(
        self, topic: str, *, timeout: float = READ_TIMEOUT, committed_only: bool = False
    ) -> list[Record]:
        """Read everything from offset 0 to the end as it is now; by partition, then offset."""
        records: list[Record] = []
        async with asyncio.timeout(timeout), self._consumer(topic, committed_only=committed_only) as opened:
            consumer, partitions = opened
            ends = await consumer.end_offsets(partitions)
            for at in [at for at in partitions if not ends[at]]:
                consumer.pause(at)
            while any([await consumer.position(at) < ends[at] for at in partitions if ends[at]]):
                for found in (await consumer.getmany(timeout_ms=200)).values():
                    records += [
                        Record(r.partition, r.offset, r.key, r.value, tuple(r.headers), r.timestamp) for r in found
                    ]
        wanted = {at.partition: end for at, end in ends.items()}
        return sorted((r for r in records if r.offset < wanted[r.partition]), key=lambda r: (r.partition, r.offset))

    async def wait_for_records(self, topic: str, count: int, *, timeout: float = READ_TIMEOUT) -> list[Record]:
        """Wait until the topic holds at least `count` records, and return all of them."""
        held = -1
        try:
            async with asyncio.timeout(timeout):
                while (held := sum((await self.end_offsets(topic)).values())) < count:
                    await asyncio.sleep(0.1)
        except TimeoutError:
            raise BrokerError(f"{topic} holds {held} records after {timeout:g} s, {count} were expected") from None
        return await self.read_all(topic)

    @asynccontextmanager
    async def _admin(self) -> AsyncIterator[AIOKafkaAdminClient]:
        admin = AIOKafkaAdminClient(bootstrap_servers=self.bootstrap)
        try:
            await admin.start()
            yield admin
        finally:
            await admin.close()

    @asynccontextmanager
    async def _consumer(
        self, topic: str, *, committed_only: bool = False
    ) -> AsyncIterator[tuple[AIOKafkaConsumer, list[TopicPartition]]]:
        consumer = AIOKafkaConsumer(
            bootstrap_servers=self.bootstrap,
            group_id=None,
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            max_partition_fetch_bytes=8 * 1024 * 1024,
            isolation_level="read_committed" if committed_only else "read_uncommitted",
        )
        try:
            await consumer.start()
            numbers = await self._partitions(topic)
            partitions = [TopicPartition(topic, number) for number in numbers]
            consumer.assign(partitions)
            yield consumer, partitions
        finally:
            await consumer.stop()

    async def _partitions(self, topic: str) -> list[int]:
        async with self._admin() as admin:
            (described,) = await admin.describe_topics([topic])
        if described["error_code"]:
            raise for_code(described["error_code"])(topic)
        return sorted(partition["partition"] for partition in described["partitions"])

    async def _until_led(self, topic: str, partitions: int) -> None:
        def led(described: Mapping[str, Any]) -> bool:
            leaders = [each for each in described["partitions"] if each["leader"] >= 0 and not each["error_code"]]
            return not described["error_code"] and len(leaders) >= partitions

        await self._until_all([topic], led)

    async def _until_all(self, topics: Sequence[str], condition: Callable[[Mapping[str, Any]], bool]) -> None:
        """Wait until it holds for the description of each of these topics."""
        async with self._admin() as admin:
            while not all(condition(each) for each in await admin.describe_topics(list(topics))):
                await asyncio.sleep(0.02)


class Kafka(KafkaCluster, Child):
    """A Kafka of the test's own, which can be stopped, killed, frozen and restarted on the same port with its data.

    Topics are not created by themselves (auto.create.topics.enable=false); `config` adds lines to server.properties, or
    replaces them. A node of a larger cluster is told its ports and the cluster's id.
    """

    def __init__(
        self,
        folder: Path,
        *,
        config: Mapping[str, str] | None = None,
        heap: str = "1g",
        ports: tuple[int, int] | None = None,
        cluster: str | None = None,
        java_options: Sequence[str] = (),
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        KafkaCluster.__init__(self)
        Child.__init__(self, "kafka", folder / "kafka.log")
        self.folder = folder
        self._config = dict(config or {})
        self._heap = heap
        self._java_options = tuple(java_options)
        self._ports: tuple[int, int] | None = None
        self._given_ports = ports
        self._cluster = cluster or str(uuid.uuid4())

    @property
    def bootstrap(self) -> str:
        if self._ports is None:
            raise BrokerError("kafka was never started")
        return f"127.0.0.1:{self._ports[0]}"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.running:
            self.kill()

    def start(self) -> None:
        """Start and wait until it serves; the first start chooses the ports and formats the storage."""
        if self._ports is not None:
            self._launch(self._ports[0])
            return
        for attempt in range(START_ATTEMPTS):
            ports = self._given_ports or (free_port(), free_port())
            self._format(ports)
            try:
                self._launch(ports[0])
            except BrokerError:
                taken = "Address already in use" in self.log() and self._given_ports is None
                if not taken or attempt == START_ATTEMPTS - 1:
                    raise
                if self.running:
                    self.kill()
                continue
            self._ports = ports
            return

    def stop(self) -> None:
        """SIGTERM: a controlled shutdown."""
        self.terminate(STOP_TIMEOUT)

    def restart(self, *, kill: bool = False) -> None:
        """Stop (or kill) it if it runs, and start it again with the data it has."""
        if self.running:
            if kill:
                self.kill()
            else:
                self.stop()
        self.start()

    def _launch(self, port: int) -> None:
        self.spawn(self._java("kafka.Kafka", str(self.folder / "server.properties")))
        self.wait_until(
            lambda: STARTED in self.log() and accepts("127.0.0.1", port), timeout=START_TIMEOUT, what="serving"
        )

    def _format(self, ports: tuple[int, int]) -> None:
        broker, controller = ports
        data = self.folder / "data"
        shutil.rmtree(data, ignore_errors=True)
        settings = {
            "process.roles": "broker,controller",
            "node.id": "1",
            "controller.quorum.voters": f"1@127.0.0.1:{controller}",
            "listeners": f"PLAINTEXT://127.0.0.1:{broker},CONTROLLER://127.0.0.1:{controller}",
            "advertised.listeners": f"PLAINTEXT://127.0.0.1:{broker}",
            "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
            "controller.listener.names": "CONTROLLER",
            "inter.broker.listener.name": "PLAINTEXT",
            "log.dirs": str(data),
            "auto.create.topics.enable": "false",
            "group.initial.rebalance.delay.ms": "0",
            "num.partitions": "1",
            "offsets.topic.num.partitions": "1",
            "offsets.topic.replication.factor": "1",
            "transaction.state.log.num.partitions": "1",
            "transaction.state.log.replication.factor": "1",
            "transaction.state.log.min.isr": "1",
            "share.coordinator.state.topic.replication.factor": "1",
            "share.coordinator.state.topic.min.isr": "1",
            "file.delete.delay.ms": "1000",
            # After kill() the controller refuses the new process until the old one's session is over (9 s).
            "broker.session.timeout.ms": "3000",
            "broker.heartbeat.interval.ms": "500",
            **self._config,
        }
        properties = self.folder / "server.properties"
        properties.write_text("".join(f"{key}={value}\n" for key, value in settings.items()))
        (self.folder / "log4j2.yaml").write_text(LOGGING)
        self.spawn(self._java("kafka.tools.StorageTool", "format", "-t", self._cluster, "-c", str(properties)))
        if self.wait(START_TIMEOUT):
            raise self.error("the storage can't be formatted")

    def _java(self, main: str, *arguments: str) -> Sequence[str]:
        java = shutil.which("java")
        if java is None:
            raise BrokerError("java is not installed: apt-get install openjdk-17-jre-headless, or set MKF_TEST_KAFKA")
        if not any(LIBS.glob("kafka_*.jar")):
            raise BrokerError(f"no Kafka in {LIBS}: `make kafka` fetches it, or set MKF_TEST_KAFKA=host:port")
        logging = f"-Dlog4j2.configurationFile={self.folder / 'log4j2.yaml'}"
        options = (f"-Xmx{self._heap}", "-XX:+UseSerialGC", logging, *self._java_options)
        return [java, *options, "-cp", f"{LIBS}/*", main, *arguments]


def _check(response: object, field: str) -> None:
    # aiokafka's admin returns the broker's errors as numbers in a tuple per topic and raises nothing.
    for name, code, *_ in getattr(response, field):
        if code:
            raise for_code(code)(f"topic {name}")
