"""Prometheus metrics: read from the plain counters when Prometheus asks. Per mapping, never per topic."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, GCCollector, Info, PlatformCollector, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

from server.core.lifecycle import State

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prometheus_client.metrics_core import Metric

    from server.runtime.supervisor import Supervisor

_COUNTERS = {
    "received": "Messages received, each counted once",
    "delivered": "Messages confirmed by Kafka",
    "deduplicated": "Redeliveries and extra copies that were not produced again",
    "dead_lettered": "Messages confirmed in the dead letter topic",
    "reconnects": "MQTT connections after the first",
    "sessions_lost": "MQTT sessions the broker no longer had",
}


class SupervisorCollector:
    """Collects from the supervisor."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor

    def collect(self) -> Iterator[Metric]:
        """Read every mapping's counters."""
        forwarders = self._supervisor.forwarders()
        for name, meaning in _COUNTERS.items():
            unit = name if name in {"reconnects", "sessions_lost"} else f"messages_{name}"
            counter = CounterMetricFamily(f"mkf_{unit}", meaning, labels=["mapping"])
            for forwarder in forwarders:
                counter.add_metric([forwarder.name], getattr(forwarder.tally, name))
            yield counter
        dropped = CounterMetricFamily("mkf_messages_dropped", "Messages given up by rule", labels=["mapping", "reason"])
        state = GaugeMetricFamily("mkf_mapping_state", "1 for the state it is in", labels=["mapping", "state"])
        connected = GaugeMetricFamily("mkf_mqtt_connected", "1 while connected to the broker", labels=["mapping"])
        messages = GaugeMetricFamily("mkf_in_flight_messages", "Received, not in Kafka yet", labels=["mapping"])
        size = GaugeMetricFamily("mkf_in_flight_bytes", "Memory held for them", labels=["mapping"])
        oldest = GaugeMetricFamily("mkf_oldest_unconfirmed_seconds", "Age of the oldest of them", labels=["mapping"])
        last = GaugeMetricFamily(
            "mkf_last_message_timestamp_seconds", "When its last message came, in Unix time", labels=["mapping"]
        )
        now = time.monotonic()
        for forwarder in forwarders:
            name = forwarder.name
            for reason, count in forwarder.tally.dropped.items():
                dropped.add_metric([name, reason], count)
            for each in State:
                state.add_metric([name, each.value], each is forwarder.state)
            connected.add_metric([name], forwarder.connected)
            messages.add_metric([name], forwarder.intake.in_flight)
            size.add_metric([name], forwarder.intake.held)
            since = forwarder.intake.window.oldest_pending
            oldest.add_metric([name], 0.0 if since is None else now - since)
            if forwarder.intake.last_message_at is not None:
                last.add_metric([name], forwarder.intake.last_message_at)
        yield from (dropped, state, connected, messages, size, oldest, last)
        lag = self._supervisor.lag
        late = HistogramMetricFamily("mkf_event_loop_lag_seconds", "How late the event loop wakes up")
        late.add_metric([], lag.buckets(), lag.total)
        yield late
        health = self._supervisor.health()
        yield GaugeMetricFamily("mkf_store_up", "1 while the store answers", value=health.store_error is None)


class Metrics:
    """The registry of one supervisor."""

    def __init__(self, supervisor: Supervisor, *, version: str) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(SupervisorCollector(supervisor))
        Info("mkf_build", "Which build this is", registry=self._registry).info({"version": version})
        ProcessCollector(registry=self._registry)
        PlatformCollector(registry=self._registry)
        GCCollector(registry=self._registry)

    def exposition(self) -> bytes:
        """Everything in Prometheus' text format."""
        return generate_latest(self._registry)
