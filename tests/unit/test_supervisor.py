"""The supervisor: what runs follows what the store wants, and no trouble of one thing is another's."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
import structlog
from aiokafka.errors import KafkaConnectionError

from server.core.kafka_options import translate
from server.core.lifecycle import State
from server.core.mapping import Mapping
from server.core.rests import SECONDS_PER_READER
from server.core.subscription import Session
from server.kafka.producer import DEFAULT_REST_SECONDS, Cluster
from server.runtime import supervisor as supervisor_module
from server.runtime.forwarder import Forwarder
from server.runtime.lag import LoopLag
from server.runtime.supervisor import MAPPING_BYTES, Supervisor
from server.store.errors import StoreUnavailableError
from server.store.store import Store
from server.store.stored import SessionChange
from tests.fakekafka import CONFIRM, STALL, FakeKafka
from tests.fakemqtt import AWAY, FakeMessage, FakeMqtt
from tests.virtualtime import in_virtual_time, now, settled, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from server.store.stored import StoredMapping


def spec_of(name: str, **changes: Any) -> Mapping:
    return Mapping.model_validate({"name": name, "mqtt": {"topic": name}, "kafka": {"topic": "k"}, **changes})


@dataclass
class Plant:
    """A supervisor that runs, its store, and both brokers."""

    mqtt: FakeMqtt
    kafka: FakeKafka
    store: Store
    supervisor: Supervisor
    task: asyncio.Task[None]

    async def create(self, name: str, **changes: Any) -> StoredMapping:
        stored = await self.store.create(spec_of(name, **changes))
        self.supervisor.wake()
        return stored

    async def change(self, name: str, *, action: str = "change", **changes: Any) -> StoredMapping:
        stored = await self.store.change(
            name,
            lambda spec: Mapping.model_validate({**spec.document(), **changes}),
            expected=None,
            action=action,
            anew=action == "restart",
        )
        self.supervisor.wake()
        return stored

    async def delete(self, name: str) -> None:
        await self.store.delete(name, expected=None)
        self.supervisor.wake()

    async def reach(self, name: str, state: State) -> None:
        await until(lambda: self.supervisor.state(name) is state)

    def forwarder(self, name: str) -> Forwarder:
        (forwarder,) = [each for each in self.supervisor.forwarders() if each.name == name]
        return forwarder


@asynccontextmanager
async def supervising(
    folder: Path, mqtt: FakeMqtt, kafka: FakeKafka, *, budget: int = 10**8, wait: bool = True
) -> AsyncIterator[Plant]:
    """Run a supervisor on a store in the folder."""
    with pytest.MonkeyPatch.context() as patcher:
        kafka.install(patcher)
        store = Store(f"sqlite:///{folder}/mkf.db", client_id_of=lambda spec: spec.client_id("base"))
        await store.open()
        cluster = Cluster("kafka:9092", translate({}))
        supervisor = Supervisor(store, mqtt.broker(), cluster, memory_budget=budget)
        plant = Plant(mqtt, kafka, store, supervisor, asyncio.create_task(supervisor.run()))
        try:
            if wait:
                await until(lambda: supervisor.health().started)
            yield plant
        finally:
            plant.task.cancel()
            await asyncio.wait([plant.task])
            await supervisor.shutdown()
            await store.close()
            assert mqtt.open == []
            assert kafka.open_producers == 0


@pytest.fixture
def mqtt() -> FakeMqtt:
    return FakeMqtt()


@pytest.fixture
def kafka() -> FakeKafka:
    return FakeKafka(sinks=10)


# --- following the store ----------------------------------------------------------------------------------------------


@in_virtual_time
async def test_what_is_created_runs_and_what_is_deleted_goes_with_its_session(
    tmp_path: Path, mqtt: FakeMqtt, kafka: FakeKafka
) -> None:
    async with supervising(tmp_path, mqtt, kafka) as plant:
        health = plant.supervisor.health()
        assert (health.supervisor_running, health.waiting_for, health.store_error) == (True, None, None)
        assert plant.supervisor.state("a") is State.PAUSED
        await plant.create("a")
        await plant.reach("a", State.RUNNING)
        assert mqtt.sessions == {"base-a": {"a"}}
        await plant.delete("a")
        await until(lambda: not plant.supervisor.forwarders())
        await until(lambda: not mqtt.sessions)
        await settled()
        await until(lambda: mqtt.asks("leave")[-1:] == [("leave", "base-a")])
        assert mqtt.asks("connect")[-1] == ("connect", "base-a", "5", True, 0)

        async def gone() -> bool:
            return await plant.store.sessions() == []

        while not await gone():
            await asyncio.sleep(0.01)


@in_virtual_time
async def test_pause_resume_change_and_restart_are_followed(tmp_path: Path, mqtt: FakeMqtt, kafka: FakeKafka) -> None:
    async with supervising(tmp_path, mqtt, kafka) as plant:
        await plant.create("a")
        await plant.reach("a", State.RUNNING)
        await plant.change("a", paused=True, action="pause")
        await plant.reach("a", State.PAUSED)
        assert mqtt.open == []
        assert mqtt.sessions == {"base-a": {"a"}}
        await plant.change("a", paused=False, action="resume")
        await plant.reach("a", State.RUNNING)
        await plant.change("a", mqtt={"topic": "other"})
        await until(lambda: mqtt.sessions == {"base-a": {"other"}})
        await plant.reach("a", State.RUNNING)
        before = plant.forwarder("a").generation
        stored = await plant.change("a", action="restart")
        await until(lambda: plant.forwarder("a").generation == stored.generation == before + 1)
        await plant.reach("a", State.RUNNING)


@in_virtual_time
async def test_a_failed_mapping_runs_again_after_a_restart_and_only_then(
    tmp_path: Path, mqtt: FakeMqtt, kafka: FakeKafka
) -> None:
    async with supervising(tmp_path, mqtt, kafka) as plant:
        kafka.judge = lambda _: 87
        await plant.create("a")
        await plant.reach("a", State.RUNNING)
        mqtt.open[0].hand_over(FakeMessage())
        await plant.reach("a", State.FAILED)
        await asyncio.sleep(100)
        assert plant.supervisor.state("a") is State.FAILED
        (stuck,) = plant.supervisor.health().stuck
        assert stuck.reason.startswith("failed: ")
        kafka.judge = lambda _: CONFIRM
        await plant.change("a", action="restart")
        await plant.reach("a", State.RUNNING)
        kafka.judge = lambda _: 87
        mqtt.open[0].hand_over(FakeMessage(packet_id=2))
        await plant.reach("a", State.FAILED)
        await plant.change("a", paused=True, action="pause")
        await plant.reach("a", State.PAUSED)
        assert plant.supervisor.health().stuck == ()


@in_virtual_time
async def test_a_client_id_goes_from_one_mapping_to_another_without_two_connections_of_it(
    tmp_path: Path, mqtt: FakeMqtt, kafka: FakeKafka
) -> None:
    async with supervising(tmp_path, mqtt, kafka) as plant:
        await plant.create("a", mqtt={"topic": "a", "client_id": "shared"})
        await plant.reach("a", State.RUNNING)
        await plant.change("a", mqtt={"topic": "a", "client_id": "mine"})
        await plant.create("b", mqtt={"topic": "b", "client_id": "shared"})
        await plant.reach("a", State.RUNNING)
        await plant.reach("b", State.RUNNING)
        assert mqtt.sessions["shared"] == {"b"}
        assert mqtt.sessions["mine"] == {"a"}


@in_virtual_time
async def test_a_deleted_mapping_that_is_created_again_begins_its_session_afresh(
    tmp_path: Path, mqtt: FakeMqtt, kafka: FakeKafka
) -> None:
    async with supervising(tmp_path, mqtt, kafka) as plant:
        await plant.create("a")
        await plant.reach("a", State.RUNNING)
        mqtt.away = AWAY
        await plant.delete("a")
        await until(lambda: not plant.supervisor.forwarders())
        await until(lambda: len(mqtt.asks("connect")) > 4)
        assert mqtt.sessions == {"base-a": {"a"}}
        assert {asked[3] for asked in mqtt.asks("connect")[1:]} == {True}
        await plant.create("a")
        await until(lambda: plant.supervisor.state("a") is not State.PAUSED)
        mqtt.away = None
        await plant.reach("a", State.RUNNING)
        assert mqtt.asks("connect")[-1] == ("connect", "base-a", "5", True, 86400)
        await asyncio.sleep(60)
        assert plant.supervisor.state("a") is State.RUNNING
        assert len(mqtt.open) == 1


@in_virtual_time
async def test_a_session_is_ended_once_the_broker_is_back(tmp_path: Path, mqtt: FakeMqtt, kafka: FakeKafka) -> None:
    async with supervising(tmp_path, mqtt, kafka) as plant:
        await plant.create("a")
        await plant.reach("a", State.RUNNING)
        mqtt.away = AWAY
        await plant.delete("a")
        await asyncio.sleep(300)
        assert mqtt.sessions
        mqtt.away = None
        await until(lambda: not mqtt.sessions)
        assert len(mqtt.asks("connect")) < 300 / 0.5


@in_virtual_time
async def test_a_removal_that_was_not_finished_is_finished_by_the_next_process(
    tmp_path: Path, mqtt: FakeMqtt, kafka: FakeKafka
) -> None:
    async with supervising(tmp_path, mqtt, kafka) as plant:
        await plant.create("a")
        await plant.reach("a", State.RUNNING)
        mqtt.away = AWAY
        await plant.delete("a")
        await until(lambda: not plant.supervisor.forwarders())
    mqtt.away = None
    async with supervising(tmp_path, mqtt, kafka):
        await until(lambda: not mqtt.sessions)


@in_virtual_time
async def test_a_bug_while_ending_a_session_is_said_and_not_repeated_without_a_pause(
    tmp_path: Path, mqtt: FakeMqtt, kafka: FakeKafka, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempts: list[float] = []

    async def broken(*_: Any) -> None:
        attempts.append(now())
        raise ZeroDivisionError

    monkeypatch.setattr(supervisor_module, "end_session", broken)
    with structlog.testing.capture_logs() as logs:
        async with supervising(tmp_path, mqtt, kafka) as plant:
            await plant.create("a")
            await plant.reach("a", State.RUNNING)
            await plant.delete("a")
            await until(lambda: attempts)
            await asyncio.sleep(30)
            assert 2 <= len(attempts) <= 60
            monkeypatch.undo()
            await until(lambda: not mqtt.sessions)
    assert any(entry["event"] == "ending_session_crashed" for entry in logs)


# --- trouble ----------------------------------------------------------------------------------------------------------


@in_virtual_time
async def test_without_kafka_everything_is_retried_and_the_health_names_it(
    tmp_path: Path, mqtt: FakeMqtt, kafka: FakeKafka
) -> None:
    kafka.start_error = KafkaConnectionError("refused")
    async with supervising(tmp_path, mqtt, kafka) as plant:
        await plant.create("a")
        await plant.create("b", paused=True)
        await plant.reach("a", State.RETRYING)
        health = plant.supervisor.health()
        assert health.stuck == ()
        assert health.not_running == ("a",)
        await asyncio.sleep(30)
        (stuck,) = plant.supervisor.health().stuck
        assert stuck.mapping == "a"
        assert stuck.reason.startswith("retrying: ")
        kafka.start_error = None
        await plant.reach("a", State.RUNNING)
        assert plant.supervisor.health().stuck == ()
        assert plant.supervisor.health().not_running == ()


def failing_store(monkeypatch: pytest.MonkeyPatch, store: Store) -> None:
    async def fail(*_: Any, **__: Any) -> None:
        raise StoreUnavailableError("the disk is gone")

    for call in ("mappings", "ping", "sessions", "write_sessions"):
        monkeypatch.setattr(store, call, fail)


@in_virtual_time
async def test_a_store_that_fails_later_leaves_what_runs_alone_and_the_health_says_so(
    tmp_path: Path, mqtt: FakeMqtt, kafka: FakeKafka, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with supervising(tmp_path, mqtt, kafka) as plant:
        await plant.create("a")
        await plant.reach("a", State.RUNNING)
        failing_store(monkeypatch, plant.store)
        plant.supervisor.wake()
        await until(lambda: plant.supervisor.health().store_error == "the disk is gone")
        await asyncio.sleep(100)
        assert plant.supervisor.state("a") is State.RUNNING
        assert plant.supervisor.health().supervisor_running
        mqtt.open[0].hand_over(FakeMessage())
        await until(lambda: kafka.values() == [b"p"])
        mqtt.open[0].end()
        await plant.reach("a", State.RETRYING)
        await plant.reach("a", State.RUNNING)
        monkeypatch.undo()
        await until(lambda: plant.supervisor.health().store_error is None)
        await plant.create("b")
        await plant.reach("b", State.RUNNING)


@in_virtual_time
async def test_that_the_store_is_unavailable_and_that_it_is_back_is_logged_once_each(
    tmp_path: Path, mqtt: FakeMqtt, kafka: FakeKafka, monkeypatch: pytest.MonkeyPatch
) -> None:
    with structlog.testing.capture_logs() as logs:
        async with supervising(tmp_path, mqtt, kafka) as plant:
            failing_store(monkeypatch, plant.store)
            plant.supervisor.wake()
            await until(lambda: plant.supervisor.health().store_error == "the disk is gone")
            await asyncio.sleep(100)
            monkeypatch.undo()
            await until(lambda: plant.supervisor.health().store_error is None)
            await asyncio.sleep(100)
    told = [(entry["log_level"], entry["event"]) for entry in logs if entry["event"].startswith("store_")]
    assert told == [("error", "store_unavailable"), ("info", "store_available")]


@in_virtual_time
async def test_a_store_that_fails_at_the_start_is_tried_again(
    tmp_path: Path, mqtt: FakeMqtt, kafka: FakeKafka, monkeypatch: pytest.MonkeyPatch
) -> None:
    sessions = Store.sessions

    async def fail(*_: Any) -> None:
        raise StoreUnavailableError("not yet")

    monkeypatch.setattr(Store, "sessions", fail)
    async with supervising(tmp_path, mqtt, kafka, wait=False) as plant:
        await until(lambda: plant.supervisor.health().store_error == "not yet")
        assert not plant.supervisor.health().started
        monkeypatch.setattr(Store, "sessions", sessions)
        await until(lambda: plant.supervisor.health().started)
        await until(lambda: plant.supervisor.health().store_error is None)


@pytest.mark.parametrize("part", ["_share_memory", "_decide", "_note_wanted"])
def test_a_crash_while_following_the_store_is_said_and_it_is_followed_again(
    tmp_path: Path, mqtt: FakeMqtt, kafka: FakeKafka, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    @in_virtual_time
    async def run() -> None:
        original = getattr(Supervisor, part)
        crashes: list[str] = []

        def broken(self: Supervisor, *args: Any) -> Any:
            if not crashes:
                crashes.append(part)
                raise ZeroDivisionError
            return original(self, *args)

        with structlog.testing.capture_logs() as logs:
            async with supervising(tmp_path, mqtt, kafka) as plant:
                await plant.create("a")
                await plant.reach("a", State.RUNNING)
                monkeypatch.setattr(Supervisor, part, broken)
                await plant.create("b")
                await plant.reach("b", State.RUNNING)
                assert plant.supervisor.state("a") is State.RUNNING
        assert [entry["part"] for entry in logs if entry["event"] == "supervisor_part_crashed"] == ["_follow"]

    run()


@in_virtual_time
async def test_a_mapping_whose_forwarder_breaks_failed_with_that_reason_and_the_others_run(
    tmp_path: Path, mqtt: FakeMqtt, kafka: FakeKafka, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Forwarder.run

    async def broken(self: Forwarder, spec: Mapping, generation: int) -> None:
        self.generation = generation
        if self.name == "a":
            raise ZeroDivisionError("a bug")
        await run(self, spec, generation)

    monkeypatch.setattr(Forwarder, "run", broken)
    async with supervising(tmp_path, mqtt, kafka) as plant:
        await plant.create("a")
        await plant.create("b")
        await plant.reach("b", State.RUNNING)
        await plant.reach("a", State.FAILED)
        status = plant.supervisor.status(await plant.store.mapping("a"))
        assert status.reason == "internal_error: ZeroDivisionError: a bug"


# --- shares, status and resets ----------------------------------------------------------------------------------------


@in_virtual_time
async def test_every_mapping_has_its_budget_but_at_most_an_equal_share(
    tmp_path: Path, mqtt: FakeMqtt, kafka: FakeKafka
) -> None:
    async with supervising(tmp_path, mqtt, kafka, budget=8_000_000) as plant:
        await plant.create("a")
        await plant.create("small", buffer_bytes=5000)
        await plant.reach("a", State.RUNNING)
        await plant.reach("small", State.RUNNING)
        assert plant.forwarder("a").intake.budget == 4_000_000 - MAPPING_BYTES
        assert plant.forwarder("small").intake.budget == 5000
        await plant.delete("small")
        await until(lambda: plant.forwarder("a").intake.budget == 8_000_000 - MAPPING_BYTES)
        await plant.create("b")
        await plant.create("c")
        await until(lambda: plant.forwarder("a").intake.budget == 8_000_000 // 3 - MAPPING_BYTES)


@in_virtual_time
async def test_the_status_of_a_mapping_shows_notices_also_before_it_runs(
    tmp_path: Path, mqtt: FakeMqtt, kafka: FakeKafka
) -> None:
    async with supervising(tmp_path, mqtt, kafka) as plant:
        stored = await plant.store.create(spec_of("a", paused=True))
        assert plant.supervisor.status(stored).warnings == []
        plant.supervisor.notice("a", "the file's entry was skipped")
        status = plant.supervisor.status(stored)
        assert status.warnings == ["the file's entry was skipped"]
        assert (status.state, status.mqtt.client_id) == (State.PAUSED, "base-a")
        assert plant.supervisor.client_id_of(stored.spec) == "base-a"


@in_virtual_time
async def test_a_notice_is_of_the_mapping_there_was_and_not_of_the_next_with_its_name(
    tmp_path: Path, mqtt: FakeMqtt, kafka: FakeKafka
) -> None:
    async with supervising(tmp_path, mqtt, kafka) as plant:
        stored = await plant.store.create(spec_of("a", paused=True))
        plant.supervisor.notice("a", "the file's entry was skipped")
        changed = await plant.change("a", wrap_as_json=True)
        assert plant.supervisor.status(changed).warnings == ["the file's entry was skipped"]
        await plant.delete("a")
        stored = await plant.store.create(spec_of("a", paused=True))
        assert plant.supervisor.status(stored).warnings == []


@pytest.mark.parametrize(("options", "limit"), [({}, None), ({"message.max.bytes": 2000}, 2000)])
async def test_the_limit_of_a_record_is_the_configured_one(
    tmp_path: Path, mqtt: FakeMqtt, options: dict[str, int], limit: int | None
) -> None:
    store = Store(f"sqlite:///{tmp_path}/x.db", client_id_of=lambda spec: spec.client_id("base"))
    supervisor = Supervisor(store, mqtt.broker(), Cluster("kafka:9092", translate(options)), memory_budget=1)
    assert supervisor.record_limit() == limit


@in_virtual_time
async def test_before_it_runs_the_health_says_what_it_waits_for(tmp_path: Path, mqtt: FakeMqtt) -> None:
    store = Store(f"sqlite:///{tmp_path}/x.db", client_id_of=lambda spec: spec.client_id("base"))
    supervisor = Supervisor(store, mqtt.broker(), Cluster("kafka:9092", translate({})), memory_budget=1)
    assert supervisor.health().waiting_for == "the start of the process"
    supervisor.waiting("the lock")
    health = supervisor.health()
    assert (health.started, health.supervisor_running, health.waiting_for) == (False, False, "the lock")
    await supervisor.shutdown()


@in_virtual_time
async def test_a_mapping_that_never_ran_is_paused_since_the_same_time_whoever_asks(
    tmp_path: Path, mqtt: FakeMqtt, kafka: FakeKafka
) -> None:
    async with supervising(tmp_path, mqtt, kafka) as plant:
        await plant.create("a", paused=True)
        await until(plant.supervisor.forwarders)
        stored = await plant.store.mapping("a")
        first = plant.supervisor.status(stored).since
        await asyncio.sleep(5)
        assert plant.supervisor.status(stored).since == first


@in_virtual_time
async def test_a_reset_ends_the_session_at_once_and_resume_begins_a_new_one(
    tmp_path: Path, mqtt: FakeMqtt, kafka: FakeKafka
) -> None:
    async with supervising(tmp_path, mqtt, kafka) as plant:
        await plant.create("a")
        await plant.reach("a", State.RUNNING)
        await plant.change("a", paused=True)
        await plant.reach("a", State.PAUSED)
        await plant.store.reset_sessions("a", detail={})
        plant.supervisor.session_reset("a")
        await until(lambda: not mqtt.sessions and not mqtt.open)
        assert mqtt.asks("connect")[-1] == ("connect", "base-a", "5", True, 0)
        await plant.change("a", paused=False)
        await plant.reach("a", State.RUNNING)
        assert plant.forwarder("a").tally.sessions_lost == 0
        plant.supervisor.session_reset("nobody")


@in_virtual_time
async def test_a_mapping_resumed_before_its_session_could_be_ended_begins_a_new_one(
    tmp_path: Path, mqtt: FakeMqtt, kafka: FakeKafka
) -> None:
    async with supervising(tmp_path, mqtt, kafka) as plant:
        await plant.create("a")
        await plant.reach("a", State.RUNNING)
        await plant.change("a", paused=True)
        await plant.reach("a", State.PAUSED)
        mqtt.away = AWAY
        await plant.store.reset_sessions("a", detail={})
        plant.supervisor.session_reset("a")
        await until(lambda: ("connect", "base-a", "5", True, 0) in mqtt.asked)
        await plant.change("a", paused=False)
        mqtt.away = None
        await plant.reach("a", State.RUNNING)
        assert mqtt.asks("connect")[-1] == ("connect", "base-a", "5", True, 86400)


@in_virtual_time
async def test_a_mapping_deleted_and_created_again_at_once_is_another_one(
    tmp_path: Path, mqtt: FakeMqtt, kafka: FakeKafka
) -> None:
    async with supervising(tmp_path, mqtt, kafka) as plant:
        await plant.create("a")
        await plant.reach("a", State.RUNNING)
        await plant.store.delete("a", expected=None)
        await plant.create("a", mqtt={"topic": "other"})
        await until(lambda: mqtt.sessions.get("base-a") == {"other"})
        assert ("connect", "base-a", "5", True, 86400) in mqtt.asked


@in_virtual_time
async def test_a_mapping_deleted_while_its_session_connects_leaves_no_session(
    tmp_path: Path, mqtt: FakeMqtt, kafka: FakeKafka
) -> None:
    mqtt.hang_in = "subscribe"
    async with supervising(tmp_path, mqtt, kafka) as plant:
        await plant.create("a")
        await until(lambda: mqtt.asks("subscribe"))
        await plant.store.delete("a", expected=None)
        mqtt.hang_in = ""
        plant.supervisor.wake()
        await until(lambda: not mqtt.sessions and not mqtt.open)
        assert await plant.store.sessions() == []


@in_virtual_time
async def test_a_mapping_that_can_not_start_is_named_as_not_started(
    tmp_path: Path, mqtt: FakeMqtt, kafka: FakeKafka, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Supervisor, "_decide", lambda _: [])
    async with supervising(tmp_path, mqtt, kafka) as plant:
        await plant.create("a")
        await asyncio.sleep(30)
        (stuck,) = plant.supervisor.health().stuck
        assert stuck.reason.startswith("not started")


# --- the end ----------------------------------------------------------------------------------------------------------


@in_virtual_time
async def test_the_shutdown_drains_everything(tmp_path: Path, mqtt: FakeMqtt, kafka: FakeKafka) -> None:
    async with supervising(tmp_path, mqtt, kafka) as plant:
        for name in "abc":
            await plant.create(name)
        for name in "abc":
            await plant.reach(name, State.RUNNING)
        kafka.judge = lambda _: STALL
        for connection in mqtt.open:
            connection.hand_over(FakeMessage())
        await until(lambda: len(kafka.sent) == 3)
        plant.task.cancel()
        await asyncio.wait([plant.task])
        ending = asyncio.create_task(plant.supervisor.shutdown())
        await asyncio.sleep(1)
        for sent in kafka.sent:
            sent.answer()
        await ending
        assert len(kafka.values()) == 3
        assert all(len(connection.acknowledged) == 1 for connection in mqtt.connections)
        assert {plant.supervisor.state(name) for name in "abc"} == {State.PAUSED}
        assert not plant.supervisor.health().supervisor_running


@in_virtual_time
async def test_a_shutdown_ends_in_time_also_without_either_broker(
    tmp_path: Path, mqtt: FakeMqtt, kafka: FakeKafka
) -> None:
    async with supervising(tmp_path, mqtt, kafka) as plant:
        await plant.create("a")
        await plant.create("gone")
        await plant.reach("gone", State.RUNNING)
        await plant.reach("a", State.RUNNING)
        kafka.judge = lambda _: STALL
        for connection in mqtt.open:
            connection.hand_over(FakeMessage())
        mqtt.away = AWAY
        await plant.delete("gone")
        await asyncio.sleep(12)
        plant.task.cancel()
        await asyncio.wait([plant.task])
        at = now()
        await plant.supervisor.shutdown()
        assert now() - at < 20


@in_virtual_time
async def test_a_drain_that_hangs_is_cut_off(
    tmp_path: Path, mqtt: FakeMqtt, kafka: FakeKafka, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with supervising(tmp_path, mqtt, kafka) as plant:
        await plant.create("a")
        await plant.reach("a", State.RUNNING)
        mqtt.hang_in = "leave"
        monkeypatch.setattr(supervisor_module, "SHUTDOWN_SECONDS", 3.0)
        plant.task.cancel()
        await asyncio.wait([plant.task])
        at = now()
        with structlog.testing.capture_logs() as logs:
            await plant.supervisor.shutdown()
        assert now() - at < 5
        assert "drain_too_slow" in [entry["event"] for entry in logs]
        mqtt.hang_in = ""


@in_virtual_time
async def test_what_is_written_to_the_store_takes_effect_soon_though_nobody_speaks_of_it(
    tmp_path: Path, mqtt: FakeMqtt, kafka: FakeKafka
) -> None:
    async with supervising(tmp_path, mqtt, kafka) as plant:
        await plant.create("a")
        await plant.reach("a", State.RUNNING)
        await plant.store.write_sessions([SessionChange("base-b", Session("base-b", "a"))])
        await asyncio.sleep(60)
        at = now()
        await plant.store.create(spec_of("b"))  # as by a call that was given up before the store answered
        await plant.store.create(spec_of("c"))
        await plant.reach("c", State.RUNNING)
        assert now() - at < 6
        assert plant.supervisor.state("b") is not State.RUNNING  # its client id is still a's
        at = now()
        await plant.supervisor._ledger.forget("base-b")
        await plant.reach("b", State.RUNNING)
        assert now() - at < 6


@in_virtual_time
async def test_what_stands_down_drains_forgets_and_begins_again_with_what_the_store_says_then(
    tmp_path: Path, mqtt: FakeMqtt, kafka: FakeKafka
) -> None:
    async with supervising(tmp_path, mqtt, kafka) as plant:
        supervisor = plant.supervisor
        await plant.create("a")
        await plant.create("b")
        await plant.reach("a", State.RUNNING)
        await plant.reach("b", State.RUNNING)
        plant.task.cancel()
        await asyncio.wait([plant.task])
        await supervisor.stand_down("another process has it")
        health = supervisor.health()
        assert (health.started, health.waiting_for) == (False, "another process has it")
        assert (health.stuck, health.not_running) == ((), ())
        assert mqtt.open == []
        assert kafka.open_producers == 0
        # What the other process does meanwhile.
        await plant.store.delete("a", expected=None)
        await plant.store.write_sessions([SessionChange("base-a", None)])
        plant.task = asyncio.create_task(supervisor.run())
        await until(lambda: supervisor.health().started)
        await plant.reach("b", State.RUNNING)
        assert [each.name for each in supervisor.forwarders()] == ["b"]
        assert supervisor.health().waiting_for is None


@in_virtual_time
async def test_while_the_loop_is_late_the_mappings_rest_longer(
    tmp_path: Path, mqtt: FakeMqtt, kafka: FakeKafka, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_late = asyncio.Event()

    async def watch(lag: LoopLag, tell: Callable[[float], None]) -> None:
        del lag
        await is_late.wait()
        for _ in range(20):
            tell(1.0)
        await asyncio.Event().wait()

    monkeypatch.setattr(LoopLag, "watch", watch)
    async with supervising(tmp_path, mqtt, kafka) as plant:
        await plant.create("a")
        await plant.reach("a", State.RUNNING)
        plant.supervisor._cluster.sinks += 99  # as if there were so many more
        assert plant.supervisor.rest_seconds == DEFAULT_REST_SECONDS
        is_late.set()
        await until(lambda: plant.supervisor.rest_seconds > DEFAULT_REST_SECONDS)
        assert plant.supervisor.rest_seconds <= 100 * SECONDS_PER_READER
