"""Fixtures of the tests that run the service between real brokers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.brokers.kafka_secured import SecuredKafka
from tests.forwarding import Stage

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator
    from pathlib import Path

    from tests.brokers import KafkaCluster, MqttBroker


@pytest.fixture(params=["5", "3.1.1"])
def protocol(request: pytest.FixtureRequest) -> str:
    """Return the version of MQTT the service speaks; a test that asks for it runs over both."""
    version: str = request.param
    return version


@pytest.fixture
def stage(  # noqa: PLR0917 - pytest passes fixtures by name
    tmp_path: Path,
    mosquitto: MqttBroker,
    kafka: KafkaCluster,
    kafka_topic: Callable[..., Awaitable[str]],
    unique: str,
    protocol: str,
) -> Stage:
    """Return a stage between the shared brokers; a test with brokers of its own puts them in their place."""
    return Stage(tmp_path, mosquitto, kafka, kafka_topic, unique, protocol)


@pytest.fixture(scope="session")
def secured_kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecuredKafka]:
    """Return the Kafka with TLS, SASL and ACLs that all tests share; each has users and topics of its own."""
    with SecuredKafka(tmp_path_factory.mktemp("secured-kafka")) as broker:
        yield broker
