"""The two brokers of the demo: embedded ones from PyPI packages, or existing ones named by the environment."""

from __future__ import annotations

import asyncio
import os
from contextlib import asynccontextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING

from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import KafkaError, TopicAlreadyExistsError, for_code

from server.demo.children import DemoError, free_port, python_module, until_listening

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from pathlib import Path

START_TIMEOUT = 15.0
KAFKA_TIMEOUT = 10.0
PARTITIONS = 3
REPLICAS = 3

# rumqttd keeps sessions and messages in memory, within these limits.
IOTCORE = """\
id = 0

[router]
id = 0
max_connections = 1000
max_outgoing_packet_count = 200
max_segment_size = 10485760
max_segment_count = 10

[v5.1]
name = "v5"
listen = "127.0.0.1:{port}"
next_connection_delay_ms = 1

[v5.1.connections]
connection_timeout_ms = 10000
max_payload_size = 262144
max_inflight_count = 1000
dynamic_filters = true
"""


@dataclass(frozen=True, slots=True)
class Address:
    """Where a broker listens, and whether it is one of the demo's own."""

    host: str
    port: int
    embedded: bool = False

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


def external(variable: str) -> Address | None:
    """Return the broker that an environment variable names as host:port."""
    text = os.environ.get(variable)
    if not text:
        return None
    host, _, port = text.rpartition(":")
    if not host or not port.isdigit():
        raise DemoError(f"{variable} must be host:port, not {text!r}")
    return Address(host, int(port))


@asynccontextmanager
async def mqtt_broker(folder: Path) -> AsyncIterator[Address]:
    """Provide an MQTT 5 broker: $MKF_DEMO_MQTT, or iotcore in a process of its own."""
    if existing := external("MKF_DEMO_MQTT"):
        yield existing
        return
    _require("iotcore", "MKF_DEMO_MQTT")
    port = free_port()
    config = folder / "iotcore.toml"
    config.write_text(IOTCORE.format(port=port))
    log = folder / "iotcore.log"
    # At other levels rumqttd logs an error for every packet.
    arguments = "--config", str(config), "--log-level", "CRITICAL"
    async with python_module("iotcore", *arguments, log=log, grace=5) as process:
        try:
            await until_listening(process, "127.0.0.1", port, log=log, timeout=START_TIMEOUT)
        except DemoError as error:
            raise DemoError(f"the embedded MQTT broker does not start: {error}") from None
        yield Address("127.0.0.1", port, embedded=True)


@asynccontextmanager
async def kafka_broker(topics: Sequence[str]) -> AsyncIterator[Address]:
    """Provide a Kafka that has these topics: $MKF_DEMO_KAFKA, or librdkafka's mock cluster in this process."""
    if existing := external("MKF_DEMO_KAFKA"):
        await _create_missing(existing, topics)
        yield existing
        return
    _require("confluent_kafka", "MKF_DEMO_KAFKA")
    from confluent_kafka import KafkaException, Producer  # noqa: PLC0415 - optional, like the embedded brokers

    # The cluster lives as long as this client, in its threads. Level 4 leaves out the note that it is a mock.
    owner = Producer({"test.mock.num.brokers": 1, "log_level": 4})
    try:
        metadata = await asyncio.to_thread(owner.list_topics, timeout=KAFKA_TIMEOUT)
    except KafkaException as error:
        raise DemoError(f"the embedded Kafka does not start: {error}") from error
    (broker,) = metadata.brokers.values()
    yield Address(broker.host, broker.port, embedded=True)
    del owner


async def _create_missing(kafka: Address, topics: Sequence[str]) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=str(kafka))
    try:
        async with asyncio.timeout(KAFKA_TIMEOUT):
            await admin.start()
            replicas = min(REPLICAS, len((await admin.describe_cluster())["brokers"]))
            new = [NewTopic(topic, num_partitions=PARTITIONS, replication_factor=replicas) for topic in topics]
            response = await admin.create_topics(new)
        for topic, code, *_ in response.topic_errors:
            if code not in (0, TopicAlreadyExistsError.errno):
                raise DemoError(f"Kafka at {kafka} does not create the topic {topic}: {for_code(code).__name__}")
    except (KafkaError, OSError, TimeoutError) as error:
        raise DemoError(f"Kafka at {kafka} (MKF_DEMO_KAFKA): {error or 'no answer'}") from error
    finally:
        await admin.close()


def _require(package: str, variable: str) -> None:
    if find_spec(package) is None:
        raise DemoError(
            f"the demo's own broker is not installed: the package {package} is missing.\n"
            f"`make setup` (or `uv sync --group demo`) installs it; {variable}=host:port uses a broker that runs."
        )
