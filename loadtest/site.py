"""Where a measurement takes place: two brokers, started for it or given, and a folder."""

from __future__ import annotations

import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from confluent_kafka import Consumer, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from loadtest.endpoints import KafkaEndpoint, MqttEndpoint
from tests.brokers import Kafka, Mosquitto

if TYPE_CHECKING:
    from collections.abc import Iterator

PARTITIONS = 4
ADMIN_TIMEOUT = 30.0
WARM_UP_SECONDS = 8.0
_POLL = 0.02


@dataclass(frozen=True, slots=True)
class Site:
    """The brokers of a measurement; `mosquitto` and `kafka_process` only if they are the tool's own."""

    mqtt: MqttEndpoint
    kafka: KafkaEndpoint
    folder: Path
    mosquitto: Mosquitto | None = None
    kafka_process: Kafka | None = None

    @contextmanager
    def with_mosquitto(self, *, max_inflight: int) -> Iterator[Site]:
        """The same Kafka with another Mosquitto, which keeps so many messages in flight per client."""
        with _mosquitto(self.folder / f"mosquitto-{max_inflight}", max_inflight) as mosquitto:
            yield replace(self, mqtt=MqttEndpoint(mosquitto.host, mosquitto.port), mosquitto=mosquitto)

    @contextmanager
    def topic(self, name: str) -> Iterator[Topic]:
        """Make a topic whose records have the time Kafka appended them; it is deleted at the end.

        Raises:
            KafkaException: it can't be made.
        """
        admin = AdminClient(self.kafka.client)
        config = {"message.timestamp.type": "LogAppendTime", "max.message.bytes": str(20 << 20)}
        admin.create_topics([NewTopic(name, PARTITIONS, 1, config=config)])[name].result(ADMIN_TIMEOUT)
        topic = Topic(self.kafka, name)
        try:
            yield topic
        finally:
            topic.close()
            admin.delete_topics([name])[name].result(ADMIN_TIMEOUT)


class Topic:
    """A Kafka topic, seen from outside."""

    def __init__(self, kafka: KafkaEndpoint, name: str) -> None:
        self.name = name
        self._consumer = Consumer({**kafka.client, "group.id": "loadtest", "enable.auto.commit": False})
        self._partitions = [TopicPartition(name, number) for number in range(PARTITIONS)]
        self._wait_for_leaders()

    def records(self) -> int:
        """How many records it holds."""
        return sum(self._consumer.get_watermark_offsets(at, timeout=ADMIN_TIMEOUT)[1] for at in self._partitions)

    def close(self) -> None:
        """Leave Kafka."""
        self._consumer.close()

    def _wait_for_leaders(self) -> None:
        deadline = time.monotonic() + ADMIN_TIMEOUT
        while True:
            try:
                self.records()
            except KafkaException:
                if time.monotonic() > deadline:
                    raise
                time.sleep(_POLL)
            else:
                return


@contextmanager
def own_site(*, max_inflight: int = 65_535, warm: bool = True) -> Iterator[Site]:
    """Start a Mosquitto and a Kafka.

    Mosquitto queues without a limit; it keeps `max_inflight` messages in flight per client, by default as many as the
    protocol allows, so that it is the forwarder's limit that is measured. `warm`: Kafka has been used a little, so that
    its compiler does not take part in the first measurement.

    Raises:
        BrokerError: one does not start.
    """
    with tempfile.TemporaryDirectory(prefix="loadtest-") as name:
        folder = Path(name)
        with _mosquitto(folder / "mosquitto", max_inflight) as mosquitto, Kafka(folder / "kafka") as kafka:
            site = Site(
                MqttEndpoint(mosquitto.host, mosquitto.port),
                KafkaEndpoint(kafka.host, kafka.port),
                folder,
                mosquitto,
                kafka,
            )
            if warm:
                _warm_up(site)
            yield site


def _mosquitto(folder: Path, max_inflight: int) -> Mosquitto:
    return Mosquitto(folder, persistence=False, max_inflight=max_inflight, max_queued=0, extra=["max_queued_bytes 0"])


def _warm_up(site: Site) -> None:
    """Write and read one record at a time, which a Java process needs to have done some thousand times."""
    with site.topic("warm-up") as topic:
        producer = Producer({**site.kafka.client, "acks": "all", "linger.ms": 0})
        reader = Consumer({**site.kafka.client, "group.id": "loadtest", "enable.auto.commit": False})
        reader.assign([TopicPartition(topic.name, number, 0) for number in range(PARTITIONS)])
        deadline = time.monotonic() + WARM_UP_SECONDS
        while time.monotonic() < deadline:
            producer.produce(topic.name, b"warm-up" * 30)
            producer.flush(ADMIN_TIMEOUT)
            reader.consume(100, 0)
        reader.close()


@contextmanager
def given_site(mqtt: MqttEndpoint, kafka: KafkaEndpoint) -> Iterator[Site]:
    """Use brokers that run already."""
    with tempfile.TemporaryDirectory(prefix="loadtest-") as name:
        yield Site(mqtt, kafka, Path(name))
