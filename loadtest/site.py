"""Where a measurement takes place: two brokers, started for it or given, and a folder."""

from __future__ import annotations

import os
import sys
import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Self

from confluent_kafka import Consumer, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from loadtest.endpoints import KafkaEndpoint, MqttEndpoint
from tests.brokers import Kafka, Mosquitto, free_port
from tests.brokers.process import Child, accepts

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[1]
PARTITIONS = 4
ADMIN_TIMEOUT = 30.0
WARM_UP_SECONDS = 8.0
_POLL = 0.02


@dataclass(frozen=True, slots=True)
class Site:
    """The brokers of a measurement; `mosquitto` and `kafka_process` only if they are the tool's own.

    `window` is the proxy through which forwarders reach Mosquitto if few messages are to be in flight.
    """

    mqtt: MqttEndpoint
    kafka: KafkaEndpoint
    folder: Path
    mosquitto: Mosquitto | None = None
    kafka_process: Kafka | None = None
    window: Proxy | None = None

    @property
    def forwarders_mqtt(self) -> MqttEndpoint:
        """Where forwarders connect to."""
        return self.mqtt if self.window is None else MqttEndpoint("127.0.0.1", self.window.port)

    @contextmanager
    def with_window(self, size: int) -> Iterator[Site]:
        """The same brokers, with at most `size` messages in flight to a forwarder."""
        with Proxy(self.folder, self.mqtt, size) as window:
            yield replace(self, window=window)

    @contextmanager
    def topic(self, name: str) -> Iterator[Topic]:
        """Make a topic whose records have the time Kafka appended them; it is deleted at the end.

        Raises:
            KafkaException: it can't be made, or nobody is there.
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


class Proxy(Child):
    """window.py, on a port of its own."""

    def __init__(self, folder: Path, mqtt: MqttEndpoint, size: int) -> None:
        super().__init__("window", folder / "window.log")
        self.port = free_port()
        self._arguments = [str(self.port), mqtt.host, str(mqtt.port), str(size)]

    def __enter__(self) -> Self:
        env = {**os.environ, "PYTHONPATH": str(ROOT)}
        self.spawn([sys.executable, "-m", "loadtest.window", *self._arguments], env=env)
        self.wait_until(lambda: accepts("127.0.0.1", self.port), timeout=ADMIN_TIMEOUT, what="listening")
        return self

    def __exit__(self, *_: object) -> None:
        if self.running:
            self.kill()


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
def own_site(*, warm: bool = True) -> Iterator[Site]:
    """Start a Mosquitto and a Kafka.

    Mosquitto queues without a limit and keeps as many messages in flight as the protocol allows, so that it is the
    forwarder's limit that is measured. `warm`: Kafka has been used a little, so that
    its compiler does not take part in the first measurement.

    Raises:
        BrokerError: one does not start.
    """
    with tempfile.TemporaryDirectory(prefix="loadtest-") as name:
        folder = Path(name)
        with _mosquitto(folder / "mosquitto") as mosquitto, Kafka(folder / "kafka") as kafka:
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


def _mosquitto(folder: Path) -> Mosquitto:
    unlimited = ["max_queued_bytes 0"]
    return Mosquitto(folder, persistence=False, max_inflight=65_535, max_queued=0, extra=unlimited)


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
