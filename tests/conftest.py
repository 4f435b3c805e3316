"""Fixtures for everybody: brokers shared by the run, brokers of a test's own, and names nobody else uses.

`mosquitto` and `kafka` start with the first test that asks for them and serve the whole run. Never stop them: a test
that breaks a broker asks `own_mosquitto` or `own_kafka` for one. MKF_TEST_MQTT and MKF_TEST_KAFKA (host:port) name
brokers that run already and take the place of the shared ones.
"""

from __future__ import annotations

import os
import uuid
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest

from tests.brokers import Kafka, KafkaCluster, Mosquitto, MqttBroker
from tests.brokers.process import accepts

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
    from pathlib import Path


def _external(variable: str) -> tuple[str, int] | None:
    address = os.environ.get(variable)
    if not address:
        return None
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        pytest.exit(f"{variable} must be host:port, not {address!r}", returncode=2)
    if not accepts(host, int(port)):
        pytest.exit(f"{variable}={address}: nothing listens there", returncode=2)
    return host, int(port)


@pytest.fixture(scope="session")
def mosquitto(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MqttBroker]:
    """Return the MQTT broker all tests share."""
    if external := _external("MKF_TEST_MQTT"):
        yield MqttBroker(*external)
        return
    with Mosquitto(tmp_path_factory.mktemp("mosquitto"), persistence=False) as broker:
        yield broker.address


@pytest.fixture(scope="session")
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaCluster]:
    """Return the Kafka all tests share."""
    if external := _external("MKF_TEST_KAFKA"):
        yield KafkaCluster("{}:{}".format(*external))
        return
    with Kafka(tmp_path_factory.mktemp("kafka")) as broker:
        yield broker


@pytest.fixture
def own_mosquitto(tmp_path: Path) -> Iterator[Callable[..., Mosquitto]]:
    """Start Mosquittos of the test's own: `own_mosquitto(max_queued=10)`; options as in `Mosquitto`."""
    with ExitStack() as stack:
        made = 0

        def make(**options: Any) -> Mosquitto:
            nonlocal made
            made += 1
            return stack.enter_context(Mosquitto(tmp_path / f"mosquitto-{made}", **options))

        yield make


@pytest.fixture
def own_kafka(tmp_path: Path) -> Iterator[Callable[..., Kafka]]:
    """Start Kafkas of the test's own: `own_kafka(config=...)`, options as in `Kafka`."""
    with ExitStack() as stack:
        made = 0

        def make(**options: Any) -> Kafka:
            nonlocal made
            made += 1
            return stack.enter_context(Kafka(tmp_path / f"kafka-{made}", **options))

        yield make


@pytest.fixture
def unique() -> str:
    """Return a suffix for topics and client ids that no other test or run uses."""
    return uuid.uuid4().hex[:12]


@pytest.fixture
async def kafka_topic(kafka: KafkaCluster, unique: str) -> AsyncIterator[Callable[..., Awaitable[str]]]:
    """Create topics in the shared Kafka until the end of the test, as in `await kafka_topic("orders", partitions=3)`."""
    created: list[str] = []

    async def create(name: str = "test", **options: Any) -> str:
        topic = await kafka.create_topic(f"{name}-{len(created)}-{unique}", **options)
        created.append(topic)
        return topic

    yield create
    for topic in created:
        await kafka.delete_topic(topic)
