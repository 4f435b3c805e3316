"""Metrics: the plain counters in Prometheus' text format, per mapping and never per topic."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pytest
from prometheus_client.parser import text_string_to_metric_families

from server.core.kafka_options import translate
from server.core.lifecycle import State
from server.core.mapping import Mapping
from server.kafka.producer import Cluster
from server.runtime import metrics as metrics_module
from server.runtime.forwarder import Forwarder
from server.runtime.health import Health
from server.runtime.lag import LoopLag
from server.runtime.ledger import Ledger
from server.runtime.metrics import MAPPINGS_AT_ONCE, Metrics
from server.tasks import ended
from tests.fakemqtt import FakeMessage, FakeMqtt, NotingStore
from tests.virtualtime import in_virtual_time

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

    from server.runtime.supervisor import Supervisor

_BOUNDS = ("0.0025", "0.005", "300.0", "+Inf")


class FakeSupervisor:
    """Some forwarders, and a store that answers or not."""

    def __init__(self, *names: str) -> None:
        ledger = Ledger(NotingStore(lambda _: None).as_store())
        cluster = Cluster("kafka:9092", translate({}))
        self.all = [Forwarder(name, FakeMqtt().broker(), cluster, ledger) for name in names]
        self.store_error: str | None = None
        self.lag = LoopLag()
        self.rest_seconds = cluster.rests.seconds

    def forwarders(self) -> list[Forwarder]:
        return self.all

    def health(self) -> Health:
        return Health(started=True, supervisor_running=True, store_error=self.store_error)


async def _text(supervisor: FakeSupervisor, *, seed_names: bool = False) -> str:
    metrics = Metrics(cast("Supervisor", supervisor), version="1.2.3", seed_names=seed_names)
    return (await metrics.exposition()).decode()


async def _exposition(supervisor: FakeSupervisor, *, seed_names: bool = False) -> list[Metric]:
    return list(text_string_to_metric_families(await _text(supervisor, seed_names=seed_names)))


async def _samples(supervisor: FakeSupervisor, *, seed_names: bool = False) -> dict[Any, float]:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in await _exposition(supervisor, seed_names=seed_names)
        for sample in family.samples
    }


def _of(samples: dict[Any, float], name: str, **labels: str) -> float:
    return samples[name, tuple(sorted(labels.items()))]


@in_virtual_time
async def test_every_counter_is_there_for_every_mapping() -> None:
    supervisor = FakeSupervisor("a", 'odd "name"\n')
    tally = supervisor.all[0].tally
    tally.received, tally.delivered, tally.deduplicated, tally.dead_lettered = 10, 5, 4, 2
    tally.sessions_lost, tally.received_bytes, tally.delivered_bytes = 1, 1_000, 700
    tally.dropped["not_mappable"] = 2
    samples = await _samples(supervisor)
    for name, value in {
        "mkf_messages_received_total": 10,
        "mkf_messages_delivered_total": 5,
        "mkf_messages_deduplicated_total": 4,
        "mkf_messages_dead_lettered_total": 2,
        "mkf_received_bytes_total": 1_000,
        "mkf_delivered_bytes_total": 700,
        "mkf_sessions_lost_total": 1,
        "mkf_mqtt_connected": 0,
        "mkf_in_flight_messages": 0,
        "mkf_in_flight_bytes": 0,
        "mkf_oldest_unconfirmed_seconds": 0,
    }.items():
        assert _of(samples, name, mapping="a") == value
        assert _of(samples, name, mapping='odd "name"\n') == 0
    assert _of(samples, "mkf_messages_dropped_total", mapping="a", reason="not_mappable") == 2


@in_virtual_time
async def test_the_build_has_its_version() -> None:
    assert _of(await _samples(FakeSupervisor()), "mkf_build_info", version="1.2.3") == 1


@in_virtual_time
async def test_a_mapping_has_the_time_of_its_last_message_once_there_was_one() -> None:
    supervisor = FakeSupervisor("a", "b")
    supervisor.all[0].intake.last_message_at = 1_800_000_000.25
    samples = await _samples(supervisor)
    assert _of(samples, "mkf_last_message_timestamp_seconds", mapping="a") == 1_800_000_000.25
    assert ("mkf_last_message_timestamp_seconds", (("mapping", "b"),)) not in samples


@in_virtual_time
async def test_reconnects_have_a_side_and_the_reason_why_the_connection_before_had_ended() -> None:
    supervisor = FakeSupervisor("a")
    tally = supervisor.all[0].tally
    tally.mqtt_reconnects["mqtt_keep_alive"] += 2
    supervisor.all[0].kafka_reconnected("kafka_timeout")
    samples = await _samples(supervisor)
    assert _of(samples, "mkf_reconnects_total", mapping="a", side="mqtt", reason="mqtt_keep_alive") == 2
    assert _of(samples, "mkf_reconnects_total", mapping="a", side="kafka", reason="kafka_timeout") == 1


@in_virtual_time
async def test_how_long_messages_took_is_a_histogram() -> None:
    supervisor = FakeSupervisor("a")
    supervisor.all[0].waited(0.004, 10)
    supervisor.all[0].waited(400.0, 1)
    samples = await _samples(supervisor)
    buckets = {bound: _of(samples, "mkf_delivery_latency_seconds_bucket", mapping="a", le=bound) for bound in _BOUNDS}
    assert buckets == {"0.0025": 0, "0.005": 10, "300.0": 10, "+Inf": 11}
    assert _of(samples, "mkf_delivery_latency_seconds_count", mapping="a") == 11
    assert _of(samples, "mkf_delivery_latency_seconds_sum", mapping="a") == 400.04


@in_virtual_time
async def test_the_last_progress_is_the_last_confirmation_dead_letters_included() -> None:
    supervisor = FakeSupervisor("a", "b", "c")
    supervisor.all[0].delivered(1, 100)
    supervisor.all[1].dead_lettered(1)
    samples = await _samples(supervisor)
    assert _of(samples, "mkf_last_progress_timestamp_seconds", mapping="a") > 0
    assert _of(samples, "mkf_last_progress_timestamp_seconds", mapping="b") > 0
    assert ("mkf_last_progress_timestamp_seconds", (("mapping", "c"),)) not in samples


@in_virtual_time
async def test_the_seeds_names_are_there_if_asked_for() -> None:
    supervisor = FakeSupervisor("a", "b", "never run")
    for forwarder, topics in zip(supervisor.all, (["x/#", "y"], "x/#"), strict=False):
        forwarder.spec = Mapping.model_validate(
            {"name": forwarder.name, "mqtt": {"topic": topics}, "kafka": {"topic": "k"}}
        )
        forwarder.tally.received, forwarder.tally.delivered = 5, 4
    samples = await _samples(supervisor, seed_names=True)
    assert _of(samples, "forwarding_mqtt_received", topic="x/# y") == 5
    assert _of(samples, "forwarding_mqtt_received", topic="x/#") == 5
    assert _of(samples, "forwarding_kafka_published", topic="k") == 8
    assert _of(samples, "forwarding_mqtt_connected") == 1  # those that are paused need no connection
    supervisor.all[0].state = State.RETRYING
    assert _of(await _samples(supervisor, seed_names=True), "forwarding_mqtt_connected") == 0
    assert not any(name.startswith("forwarding_") for name, _ in await _samples(supervisor))


@in_virtual_time
async def test_exactly_one_state_of_a_mapping_is_1() -> None:
    supervisor = FakeSupervisor("a")
    supervisor.all[0].state = State.RETRYING
    samples = await _samples(supervisor)
    states = {state.value: _of(samples, "mkf_mapping_state", mapping="a", state=state.value) for state in State}
    assert states.pop("retrying") == 1
    assert set(states.values()) == {0}


@in_virtual_time
async def test_what_is_in_flight_has_a_number_a_size_and_an_age() -> None:
    supervisor = FakeSupervisor("a")
    intake = supervisor.all[0].intake
    intake.window.arrive([FakeMessage()], 500, 1000.0 - 7.0)
    intake.owed = 3
    samples = await _samples(supervisor)
    assert _of(samples, "mkf_in_flight_messages", mapping="a") == 3
    assert _of(samples, "mkf_in_flight_bytes", mapping="a") == 500
    assert _of(samples, "mkf_oldest_unconfirmed_seconds", mapping="a") == 7.0


@in_virtual_time
async def test_the_store_and_the_process_are_there_without_mappings() -> None:
    supervisor = FakeSupervisor()
    assert _of(await _samples(supervisor), "mkf_store_up") == 1
    supervisor.store_error = "gone"
    samples = await _samples(supervisor)
    assert _of(samples, "mkf_store_up") == 0
    assert any(name == "process_cpu_seconds_total" for name, _ in samples)


@in_virtual_time
async def test_the_operating_guide_explains_every_metric_and_no_other() -> None:
    guide = (Path(__file__).parents[2] / "docs/operating.md").read_text()
    own = re.compile(r"(mkf|forwarding)_")
    made = {family.name for family in await _exposition(FakeSupervisor("a"), seed_names=True) if own.match(family.name)}
    explained = set(re.findall(r"`((?:mkf|forwarding)_[a-z_]+)[`{]", guide))
    assert {name.removesuffix("_total") for name in explained} == made


@pytest.mark.parametrize("hurries", [False, True], ids=["in time", "late"])
@in_virtual_time
async def test_many_mappings_are_one_text_and_others_have_the_loop_in_between_while_there_is_time(
    monkeypatch: pytest.MonkeyPatch, hurries: bool
) -> None:
    if hurries:
        monkeypatch.setattr(metrics_module, "MOST_SECONDS", 0.0)
    names = [f"m{n:03}" for n in range(2 * MAPPINGS_AT_ONCE + 1)]
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    counting = asyncio.create_task(count())
    text = await _text(FakeSupervisor(*names))
    await ended(counting)
    assert (turns >= 2) is not hurries
    comments = [line.split()[1:3] for line in text.splitlines() if line.startswith("#")]
    assert len({tuple(comment) for comment in comments}) == len(comments), "Prometheus refuses a second HELP or TYPE"
    families = {family.name: family for family in text_string_to_metric_families(text)}
    assert [sample.labels["mapping"] for sample in families["mkf_messages_received"].samples] == names
