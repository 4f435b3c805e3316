"""Prometheus metrics: read from the plain counters when Prometheus asks. Per mapping, never per topic."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, GCCollector, Info, PlatformCollector, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

from server.core.lifecycle import State
from server.runtime.seed_metrics import SeedCollector

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from collections.abc import Mapping as Lookup

    from prometheus_client.metrics_core import Metric

    from server.runtime.forwarder import Forwarder
    from server.runtime.supervisor import Supervisor

# Each takes 0.2 ms, and the loop has nothing else meanwhile.
MAPPINGS_AT_ONCE = 25
# A loop that is late comes back late too, and Prometheus gives up after 10 s: then all that is left is done at once.
MOST_SECONDS = 2.0
_COUNTERS = {
    "messages_received": "Messages received, each counted once",
    "messages_delivered": "Messages confirmed by Kafka",
    "messages_deduplicated": "Redeliveries and extra copies that were not produced again",
    "messages_dead_lettered": "Messages confirmed in the dead letter topic",
    "sessions_lost": "MQTT sessions the broker no longer had",
    "received_bytes": "Bytes of the messages that came from the broker, redeliveries included",
    "delivered_bytes": "Bytes of the record batches Kafka confirmed, before compression",
}


def _of_mappings(forwarders: Sequence[Forwarder]) -> Iterator[Metric]:
    """Read these mappings' counters; every family comes, whether or not there is anything in it."""
    for name, meaning in _COUNTERS.items():
        counter = CounterMetricFamily(f"mkf_{name}", meaning, labels=["mapping"])
        for forwarder in forwarders:
            counter.add_metric([forwarder.name], getattr(forwarder.tally, name.removeprefix("messages_")))
        yield counter
    dropped = CounterMetricFamily("mkf_messages_dropped", "Messages given up by rule", labels=["mapping", "reason"])
    reconnects = CounterMetricFamily(
        "mkf_reconnects",
        "MQTT connections and Kafka producers after the first, by the reason why the one before had ended",
        labels=["mapping", "side", "reason"],
    )
    latency = HistogramMetricFamily(
        "mkf_delivery_latency_seconds", "From a message's receipt to Kafka's confirmation", labels=["mapping"]
    )
    state = GaugeMetricFamily("mkf_mapping_state", "1 for the state it is in", labels=["mapping", "state"])
    connected = GaugeMetricFamily("mkf_mqtt_connected", "1 while connected to the broker", labels=["mapping"])
    messages = GaugeMetricFamily("mkf_in_flight_messages", "Received, not in Kafka yet", labels=["mapping"])
    size = GaugeMetricFamily("mkf_in_flight_bytes", "Memory held for them", labels=["mapping"])
    oldest = GaugeMetricFamily("mkf_oldest_unconfirmed_seconds", "Age of the oldest of them", labels=["mapping"])
    last = GaugeMetricFamily(
        "mkf_last_message_timestamp_seconds", "When its last message came, in Unix time", labels=["mapping"]
    )
    progress = GaugeMetricFamily(
        "mkf_last_progress_timestamp_seconds",
        "When Kafka last confirmed a message, in Unix time",
        labels=["mapping"],
    )
    now = time.monotonic()
    for forwarder in forwarders:
        name, tally = forwarder.name, forwarder.tally
        for reason, count in tally.dropped.items():
            dropped.add_metric([name, reason], count)
        for side, reasons in (("mqtt", tally.mqtt_reconnects), ("kafka", tally.kafka_reconnects)):
            for reason, count in reasons.items():
                reconnects.add_metric([name, side, reason], count)
        latency.add_metric([name], tally.latency.buckets(), tally.latency.total)
        if tally.progressed_at is not None:
            progress.add_metric([name], tally.progressed_at)
        for each in State:
            state.add_metric([name, each.value], each is forwarder.state)
        connected.add_metric([name], forwarder.connected)
        messages.add_metric([name], forwarder.intake.in_flight)
        size.add_metric([name], forwarder.intake.held)
        since = forwarder.intake.window.oldest_pending
        oldest.add_metric([name], 0.0 if since is None else now - since)
        if forwarder.intake.last_message_at is not None:
            last.add_metric([name], forwarder.intake.last_message_at)
    yield from (dropped, reconnects, latency, state, connected, messages, size, oldest, last, progress)


class SupervisorCollector:
    """Collects what all mappings share."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor

    def collect(self) -> Iterator[Metric]:
        """Ask the supervisor."""
        lag = self._supervisor.lag
        late = HistogramMetricFamily("mkf_event_loop_lag_seconds", "How late the event loop wakes up")
        late.add_metric([], lag.buckets(), lag.total)
        yield late
        yield GaugeMetricFamily(
            "mkf_rest_seconds",
            "How long readers wait after a message for more: the longer, the less CPU there is for all",
            value=self._supervisor.rest_seconds,
        )
        health = self._supervisor.health()
        yield GaugeMetricFamily("mkf_store_up", "1 while the store answers", value=health.store_error is None)


class RefusalsCollector:
    """Collects how many requests to the API were refused for want of a good token, by reason."""

    def __init__(self, refusals: Lookup[str, int]) -> None:
        self._refusals = refusals

    def collect(self) -> Iterator[Metric]:
        """Read the counters."""
        refused = CounterMetricFamily("mkf_api_refused", "Requests without a good token", labels=["reason"])
        for reason, count in self._refusals.items():
            refused.add_metric([reason], count)
        yield refused


class Metrics:
    """The registry of one supervisor; with `seed_names` also what the seed called its metrics.

    `refusals` says how many requests the API has refused, by reason.
    """

    def __init__(
        self, supervisor: Supervisor, *, version: str, seed_names: bool, refusals: Lookup[str, int] | None = None
    ) -> None:
        self._supervisor = supervisor
        self._registry = CollectorRegistry()
        self._registry.register(SupervisorCollector(supervisor))
        self._registry.register(RefusalsCollector({} if refusals is None else refusals))
        if seed_names:
            self._registry.register(SeedCollector(supervisor))
        Info("mkf_build", "Which build this is", registry=self._registry).info({"version": version})
        ProcessCollector(registry=self._registry)
        PlatformCollector(registry=self._registry)
        GCCollector(registry=self._registry)

    async def exposition(self) -> bytes:
        """Everything in Prometheus' text format. Between some mappings and the next, others have the loop."""
        families: defaultdict[str, list[bytes]] = defaultdict(list)
        forwarders = self._supervisor.forwarders()
        hurry_at = time.monotonic() + MOST_SECONDS
        for first in range(0, max(1, len(forwarders)), MAPPINGS_AT_ONCE):
            for family in _of_mappings(forwarders[first : first + MAPPINGS_AT_ONCE]):
                parts = families[family.name]
                text = generate_latest(_Only(family))
                parts.append(text.split(b"\n", 2)[2] if parts else text)  # a family has one HELP line and one TYPE line
            if time.monotonic() < hurry_at:
                await asyncio.sleep(0)
        return b"".join([part for parts in families.values() for part in parts]) + generate_latest(self._registry)


class _Only:
    """A collector of one family, for it can be rendered from a collector only."""

    def __init__(self, family: Metric) -> None:
        self._family = family

    def collect(self) -> Iterator[Metric]:
        """That one."""
        yield self._family
