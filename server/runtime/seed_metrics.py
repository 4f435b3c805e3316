"""The three metrics of the Rust program this service follows, for dashboards and alerts that know only these.

Its label `topic` was the topic of each message. Here it is the mapping's topic filters, and its Kafka topic: a label
per MQTT topic would grow with the fleet.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from prometheus_client.core import GaugeMetricFamily, UnknownMetricFamily

from server.core.lifecycle import State

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prometheus_client.metrics_core import Metric

    from server.runtime.supervisor import Supervisor


class SeedCollector:
    """Collects from the supervisor under the seed's names."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor

    def collect(self) -> Iterator[Metric]:
        """Read every mapping's counters; mappings with the same topics are one."""
        received: Counter[str] = Counter()
        published: Counter[str] = Counter()
        connected = True
        for forwarder in self._supervisor.forwarders():
            connected &= forwarder.connected or forwarder.state is State.PAUSED
            spec = forwarder.spec
            if spec is not None:
                received[" ".join(spec.mqtt.filters)] += forwarder.tally.received
                published[spec.kafka.topic] += forwarder.tally.delivered
        for name, meaning, counts in (
            ("forwarding_mqtt_received", "Messages received", received),
            ("forwarding_kafka_published", "Messages confirmed by Kafka", published),
        ):
            counter = UnknownMetricFamily(name, meaning, labels=["topic"])  # a counter's name would end in _total
            for topic, count in counts.items():
                counter.add_metric([topic], count)
            yield counter
        yield GaugeMetricFamily("forwarding_mqtt_connected", "1 while every mapping that runs is", value=connected)
