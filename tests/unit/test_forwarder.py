"""One mapping's pipeline: its states and reasons, its drains, and books that balance at every step."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest
import structlog
from aiokafka.errors import KafkaConnectionError

from server.core.kafka_options import translate
from server.core.lifecycle import Reason, State
from server.core.mapping import Mapping
from server.core.numbering import ENOUGH
from server.kafka.producer import Cluster
from server.kafka.sink import Sink
from server.kafka.watch import Watch
from server.mqtt.port import Ended
from server.runtime.forwarder import Forwarder
from server.runtime.ledger import Ledger
from server.runtime.session import MqttSession
from server.store.stored import StoredMapping
from tests.fakekafka import CONFIRM, STALL, FakeKafka
from tests.fakemqtt import AWAY, LOST, FakeConnection, FakeMessage, FakeMqtt, NotingStore
from tests.virtualtime import in_virtual_time, now, settled, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@dataclass
class Line:
    """A forwarder between a fake broker and a fake Kafka."""

    mqtt: FakeMqtt
    kafka: FakeKafka
    forwarder: Forwarder
    spec: Mapping
    task: asyncio.Task[None]
    sent: int = 0

    @property
    def state(self) -> State:
        return self.forwarder.state

    @property
    def code(self) -> str | None:
        return self.forwarder.reason.code if self.forwarder.reason else None

    @property
    def connection(self) -> FakeConnection:
        (connection,) = self.mqtt.open
        return connection

    def balance(self) -> None:
        """Invariant 8."""
        tally, intake = self.forwarder.tally, self.forwarder.intake
        assert tally.received == tally.delivered + tally.dead_lettered + tally.dropped.total() + intake.in_flight

    def send(self, *payloads: bytes, qos: int = 1) -> list[FakeMessage]:
        """The broker hands these over."""
        messages = []
        for payload in payloads:
            self.sent += 1
            messages.append(FakeMessage("t", payload, qos, self.sent if qos else None))
        self.connection.hand_over(*messages)
        self.balance()
        return messages

    async def show_that_ids_count_up(self) -> None:
        """The broker sends enough for its redeliveries to be believed; Kafka must confirm."""
        for count in (1, ENOUGH):
            acknowledged = len(self.connection.acknowledged) + count
            self.send(*(b"count" for _ in range(count)))
            await until(lambda: len(self.connection.acknowledged) == acknowledged)  # noqa: B023 - awaited right here

    def send_again(self, *messages: FakeMessage) -> None:
        """The broker redelivers these."""
        again = [FakeMessage(each.topic, each.payload, each.qos, each.packet_id, duplicate=True) for each in messages]
        self.connection.hand_over(*again)
        self.balance()

    async def reach(self, state: State, code: str | None = None) -> None:
        def there() -> bool:
            self.balance()
            return self.state is state and (code is None or self.code == code)

        await until(there)

    async def stop(self) -> None:
        """Stop it and wait for the end."""
        self.forwarder.stop()
        await until(self.task.done)
        self.balance()
        self.task.result()

    def again(self, **spec: Any) -> None:
        """Run it once more."""
        assert self.task.done()
        self.spec = self.spec.model_copy(update=spec)
        self.task = asyncio.create_task(self.forwarder.run(self.spec, self.forwarder.generation + 1))


@asynccontextmanager
async def forwarding(
    mqtt: FakeMqtt, kafka: FakeKafka, *, source: dict[str, Any] | None = None, **spec: Any
) -> AsyncIterator[Line]:
    """Run the mapping m from t to k."""
    document = {"name": "m", "mqtt": {"topic": "t", **(source or {})}, "kafka": {"topic": "k"}, **spec}
    mapping = Mapping.model_validate(document)
    ledger = Ledger(NotingStore(mqtt.asked.append).as_store())
    with pytest.MonkeyPatch.context() as patcher:
        kafka.install(patcher)
        forwarder = Forwarder("m", mqtt.broker(), Cluster("kafka:9092", translate({})), ledger)
        forwarder.intake.budget = 10**6
        line = Line(mqtt, kafka, forwarder, mapping, asyncio.create_task(forwarder.run(mapping, 1)))
        try:
            yield line
        finally:
            line.task.cancel()
            await asyncio.wait([line.task])
            line.balance()
            assert mqtt.open == []
            assert kafka.open_producers == 0


@pytest.fixture
def mqtt() -> FakeMqtt:
    return FakeMqtt()


@pytest.fixture
def kafka() -> FakeKafka:
    return FakeKafka()


# --- states and reasons -----------------------------------------------------------------------------------------------


@in_virtual_time
async def test_it_runs_once_it_is_subscribed_and_kafka_takes_records(mqtt: FakeMqtt, kafka: FakeKafka) -> None:
    mqtt.hang_in = "subscribe"
    async with forwarding(mqtt, kafka) as line:
        await asyncio.sleep(1)
        assert line.state is State.STARTING
        assert kafka.open_producers == 1
    mqtt.hang_in = ""
    kafka.start_hangs = True
    async with forwarding(mqtt, kafka) as line:
        await asyncio.sleep(2)
        assert line.state is State.STARTING
        assert len(mqtt.open) == 1
        kafka.start_hangs = False
        await line.reach(State.RUNNING)
        assert line.forwarder.reason is None
        assert line.forwarder.connected


@in_virtual_time
async def test_a_side_that_does_not_answer_is_named_after_some_seconds(mqtt: FakeMqtt, kafka: FakeKafka) -> None:
    mqtt.hang_in = "subscribe"
    async with forwarding(mqtt, kafka) as line:
        await line.reach(State.RETRYING, "mqtt_stalled")
        assert "mqtt:1883" in str(line.forwarder.reason)
    mqtt.hang_in = ""
    kafka.start_hangs = True
    async with forwarding(mqtt, kafka) as line:
        await line.reach(State.RETRYING, "kafka_stalled")
        kafka.start_hangs = False
        await line.reach(State.RUNNING)


@in_virtual_time
async def test_a_broker_that_sends_messages_answers_although_suback_waits_behind_them(
    mqtt: FakeMqtt, kafka: FakeKafka
) -> None:
    mqtt.hang_in = "subscribe"
    async with forwarding(mqtt, kafka) as line:
        await until(lambda: mqtt.open)
        for _ in range(10):
            line.send(b"queued")
            await asyncio.sleep(1)
            assert line.state is State.STARTING
        await line.reach(State.RETRYING, "mqtt_stalled")


@in_virtual_time
async def test_a_reason_whose_details_change_is_logged_once_a_minute_and_shown_as_it_is(
    mqtt: FakeMqtt, kafka: FakeKafka, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Watch, "_stall_reason", lambda *_: Reason("kafka_stalled", f"silent at {now():.1f}"))
    with structlog.testing.capture_logs() as logs:
        async with forwarding(mqtt, kafka) as line:
            await line.reach(State.RUNNING)
            kafka.judge = lambda _: STALL
            line.send(b"1")
            await line.reach(State.RETRYING, "kafka_stalled")
            began, seen = now(), set()
            while now() < began + 15:
                assert line.forwarder.reason is not None
                seen.add(line.forwarder.reason.detail)
                await asyncio.sleep(0.5)
            assert len(seen) > 10
            retrying = [entry["reason"] for entry in logs if entry["event"] == "mapping_retrying"]
            assert retrying == ["kafka_stalled"]


@in_virtual_time
async def test_while_it_drains_the_reason_says_what_keeps_it(mqtt: FakeMqtt, kafka: FakeKafka) -> None:
    async with forwarding(mqtt, kafka) as line:
        await line.reach(State.RUNNING)
        kafka.judge = lambda _: STALL
        line.send(b"1")
        await until(lambda: kafka.sent)
        line.forwarder.stop()
        await line.reach(State.DRAINING, "kafka_stalled")
        await until(line.task.done)
        assert line.forwarder.reason is None
        wanted = stored(line.spec)
        (warning,) = line.forwarder.status(wanted, "base").warnings
        assert warning.startswith("1 messages were received before it stopped and are not in Kafka")


@in_virtual_time
async def test_what_is_asked_between_its_start_and_its_first_step_counts(mqtt: FakeMqtt, kafka: FakeKafka) -> None:
    async with forwarding(mqtt, kafka) as line:
        await line.stop()
        line.again()
        assert line.forwarder.generation == 2
        line.forwarder.stop()
        await until(line.task.done)
        assert line.state is State.PAUSED


@in_virtual_time
async def test_a_pipeline_that_breaks_at_once_can_be_stopped(
    mqtt: FakeMqtt, kafka: FakeKafka, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(_: Sink) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(Sink, "run", broken)
    async with forwarding(mqtt, kafka) as line:
        await line.reach(State.RETRYING, "internal_error")
        await line.stop()
        assert line.state is State.PAUSED
        assert line.forwarder.last_error is not None
        assert line.forwarder.last_error.reason.code == "internal_error"


@in_virtual_time
async def test_after_poison_what_came_before_it_in_the_same_read_is_acknowledged(
    mqtt: FakeMqtt, kafka: FakeKafka
) -> None:
    kafka.judge = lambda sent: 10 if b"poison" in sent.values else CONFIRM
    async with forwarding(mqtt, kafka) as line:
        await line.reach(State.RUNNING)
        connection = line.connection
        messages = line.send(b"1", b"2", b"poison", b"4")
        await line.reach(State.FAILED)
        assert connection.acknowledged == messages[:2]
        assert line.forwarder.intake.owed == 2
        line.balance()


@in_virtual_time
async def test_messages_reach_kafka_and_are_acknowledged_then(mqtt: FakeMqtt, kafka: FakeKafka) -> None:
    kafka.judge = lambda _: STALL
    async with forwarding(mqtt, kafka) as line:
        await line.reach(State.RUNNING)
        messages = line.send(b"1", b"2")
        await until(lambda: kafka.sent)
        await settled()
        assert line.connection.acknowledged == []
        assert line.forwarder.intake.in_flight == 2
        kafka.sent[0].answer()
        await until(lambda: line.connection.acknowledged)
        assert line.connection.acknowledged == messages
        line.balance()
        assert line.forwarder.tally.delivered == 2


@in_virtual_time
async def test_each_side_that_is_away_is_a_reason_and_kafka_is_named_first(mqtt: FakeMqtt, kafka: FakeKafka) -> None:
    mqtt.away = AWAY
    async with forwarding(mqtt, kafka) as line:
        await line.reach(State.RETRYING, "mqtt_unreachable")
        kafka.judge = lambda _: 7
        kafka.start_error = KafkaConnectionError("refused")
    async with forwarding(mqtt, kafka) as line:
        await line.reach(State.RETRYING, "kafka_unreachable")
        mqtt.away = None
        await until(lambda: mqtt.open)
        assert line.state is State.RETRYING
        kafka.start_error = None
        await line.reach(State.RUNNING)
        assert line.forwarder.last_error is not None
        assert line.forwarder.last_error.reason.code in {"kafka_unreachable", "mqtt_unreachable"}
        line.connection.end(LOST)
        await line.reach(State.RETRYING, "mqtt_connection_lost")
        await line.reach(State.RUNNING)


@in_virtual_time
async def test_it_is_stuck_while_it_does_not_run_or_a_message_waits_for_kafka(mqtt: FakeMqtt, kafka: FakeKafka) -> None:
    mqtt.away = AWAY
    async with forwarding(mqtt, kafka) as line:
        await asyncio.sleep(30)
        seconds, why = line.forwarder.stuck_for(now())
        assert seconds > 29
        assert why == "retrying: connection refused"
        mqtt.away = None
        await line.reach(State.RUNNING)
        assert line.forwarder.stuck_for(now()) == (0.0, "")
        await asyncio.sleep(100)
        assert line.forwarder.stuck_for(now()) == (0.0, "")
        kafka.judge = lambda _: STALL
        line.send(b"1")
        await asyncio.sleep(2.5)
        seconds, why = line.forwarder.stuck_for(now())
        assert (round(seconds, 1), why) == (2.5, "the oldest message waits for Kafka")
        await asyncio.sleep(10)
        assert line.forwarder.stuck_for(now())[1].startswith("retrying: no answer from kafka:9092")


@in_virtual_time
async def test_a_message_that_waits_counts_on_though_the_mapping_ran_for_a_moment(
    mqtt: FakeMqtt, kafka: FakeKafka
) -> None:
    """As with one partition without a leader: a new producer delivers to the others, and stalls again."""
    async with forwarding(mqtt, kafka) as line:
        await line.reach(State.RUNNING)
        kafka.judge = lambda _: STALL
        line.send(b"1")
        began = now()
        await line.reach(State.RETRYING)
        await asyncio.sleep(30)
        line.forwarder.kafka_trouble(None)
        assert line.state is State.RUNNING
        line.forwarder.kafka_trouble(Reason("kafka_no_leader", "a partition has no leader"))
        seconds, why = line.forwarder.stuck_for(now())
        assert seconds == pytest.approx(now() - began, abs=0.1)
        assert why == "retrying: a partition has no leader"


@in_virtual_time
async def test_a_broker_that_was_silent_counts_as_away_since_it_was_last_heard(
    mqtt: FakeMqtt, kafka: FakeKafka
) -> None:
    async with forwarding(mqtt, kafka) as line:
        await line.reach(State.RUNNING)
        await asyncio.sleep(100)
        mqtt.away = AWAY
        line.connection.end(Ended(Reason("mqtt_keep_alive", "no answer to PINGREQ"), unheard_seconds=24.0))
        await line.reach(State.RETRYING, "mqtt_keep_alive")
        assert line.forwarder.stuck_for(now())[0] >= 24
        mqtt.away = None
        await line.reach(State.RUNNING)
        assert line.forwarder.stuck_for(now()) == (0.0, "")


# --- crashes ----------------------------------------------------------------------------------------------------------


def crash_once(monkeypatch: pytest.MonkeyPatch, owner: type, method: str) -> list[str]:
    """Make the next call of the method break; the list says whether it did."""
    original = getattr(owner, method)
    crashed: list[str] = []

    def broken(*args: Any, **kwargs: Any) -> Any:
        if not crashed:
            crashed.append(method)
            raise ZeroDivisionError("a bug")
        return original(*args, **kwargs)

    monkeypatch.setattr(owner, method, broken)
    return crashed


@pytest.mark.parametrize(
    ("owner", "method"), [(Watch, "look"), (Sink, "_landed"), (Sink, "_build"), (Sink, "_progressed")]
)
def test_a_crash_of_the_sink_is_a_reason_and_everything_goes_on(
    mqtt: FakeMqtt, kafka: FakeKafka, monkeypatch: pytest.MonkeyPatch, owner: type, method: str
) -> None:
    @in_virtual_time
    async def run() -> None:
        async with forwarding(mqtt, kafka) as line:
            await line.reach(State.RUNNING)
            crash_once(monkeypatch, owner, method)
            messages = line.send(b"1", b"2")
            await line.reach(State.RETRYING, "internal_error")
            assert line.forwarder.reason is not None
            assert line.forwarder.reason.detail == "ZeroDivisionError: a bug"
            await line.reach(State.RUNNING)
            acknowledged = [message for each in mqtt.connections for message in each.acknowledged]
            line.send_again(*(message for message in messages if message not in acknowledged))
            await until(lambda: line.forwarder.intake.in_flight == 0)
            line.balance()
            assert set(kafka.values()) == {b"1", b"2"}
            assert line.forwarder.tally.received == 2

    run()


@pytest.mark.parametrize("method", ["_subscribe", "_connect", "_lost", "_retire_former_sessions"])
def test_a_crash_of_the_session_is_a_reason_and_everything_goes_on(
    mqtt: FakeMqtt, kafka: FakeKafka, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    @in_virtual_time
    async def run() -> None:
        async with forwarding(mqtt, kafka) as line:
            await line.reach(State.RUNNING)
            kafka.judge = lambda _: STALL
            messages = line.send(b"1")
            await until(lambda: kafka.sent)
            crash_once(monkeypatch, MqttSession, method)
            line.connection.end(LOST)
            await line.reach(State.RETRYING, "internal_error")
            kafka.judge = lambda _: CONFIRM
            await line.reach(State.RUNNING)
            line.send_again(*messages)
            await until(lambda: line.forwarder.intake.in_flight == 0)
            assert line.forwarder.tally.received == 1
            assert set(kafka.values()) == {b"1"}
            await until(lambda: line.connection.acknowledged)

    run()


@in_virtual_time
async def test_a_crash_while_leaving_the_broker_still_accounts_for_everything(
    mqtt: FakeMqtt, kafka: FakeKafka, monkeypatch: pytest.MonkeyPatch
) -> None:
    kafka.judge = lambda _: STALL
    async with forwarding(mqtt, kafka) as line:
        await line.reach(State.RUNNING)
        messages = line.send(b"1")
        await until(lambda: kafka.sent)

        async def broken(self: FakeConnection, _: float = 0.0) -> None:
            self.end()
            raise ZeroDivisionError("a bug")

        with monkeypatch.context() as patcher:
            patcher.setattr(FakeConnection, "leave", broken)
            await line.stop()
        assert line.state is State.PAUSED
        assert line.forwarder.intake.in_flight == 1
        assert line.forwarder.intake.owed == 1
        kafka.judge = lambda _: CONFIRM
        line.again()
        await line.reach(State.RUNNING)
        line.send_again(*messages)
        await until(lambda: line.connection.acknowledged)
        line.balance()
        assert line.forwarder.intake.in_flight == 0


@in_virtual_time
async def test_a_crash_on_the_way_out_does_not_undo_a_cancellation(
    mqtt: FakeMqtt, kafka: FakeKafka, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with forwarding(mqtt, kafka) as line:
        await line.reach(State.RUNNING)
        crash_once(monkeypatch, MqttSession, "leave")
        connection = line.connection
        line.task.cancel()
        await until(line.task.done, within=5.0)
        assert isinstance(line.task.exception(), ZeroDivisionError)
        connection.end()  # the broken leave has left it open


@in_virtual_time
async def test_a_crash_while_draining_ends_paused_and_keeps_the_reason(
    mqtt: FakeMqtt, kafka: FakeKafka, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with forwarding(mqtt, kafka) as line:
        await line.reach(State.RUNNING)
        crash_once(monkeypatch, MqttSession, "leave")
        await line.stop()
        assert line.state is State.PAUSED
        assert line.forwarder.last_error is not None
        assert line.forwarder.last_error.reason.code == "internal_error"
        line.again()
        await line.reach(State.RUNNING)


@in_virtual_time
async def test_a_stop_ends_the_wait_after_a_crash(
    mqtt: FakeMqtt, kafka: FakeKafka, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(Watch, "look", broken)
    async with forwarding(mqtt, kafka) as line:
        await line.reach(State.RETRYING, "internal_error")
        await asyncio.sleep(60)
        at = now()
        await line.stop()
        assert now() - at < 0.5
        assert line.state is State.PAUSED


# --- failing ----------------------------------------------------------------------------------------------------------


@in_virtual_time
async def test_poison_under_stop_fails_acknowledges_nothing_and_a_resume_begins_anew(
    mqtt: FakeMqtt, kafka: FakeKafka
) -> None:
    kafka.judge = lambda _: 87
    async with forwarding(mqtt, kafka) as line:
        await line.reach(State.RUNNING)
        messages = line.send(b"bad")
        await until(line.task.done)
        assert (line.state, line.code) == (State.FAILED, "poison_invalid_record")
        assert mqtt.open == []
        assert mqtt.connections[0].acknowledged == []
        assert line.forwarder.intake.owed == 1
        line.forwarder.rest()
        assert line.state is State.PAUSED
        kafka.judge = lambda _: CONFIRM
        line.again()
        await line.reach(State.RUNNING)
        line.send_again(*messages)
        await until(lambda: line.connection.acknowledged)
        line.balance()
        assert line.forwarder.tally.received == 1


@in_virtual_time
async def test_poison_found_while_draining_ends_paused(mqtt: FakeMqtt, kafka: FakeKafka) -> None:
    kafka.judge = lambda _: STALL
    async with forwarding(mqtt, kafka) as line:
        await line.reach(State.RUNNING)
        line.send(b"bad")
        await until(lambda: kafka.sent)
        line.forwarder.stop()
        await line.reach(State.DRAINING)
        kafka.sent[0].answer(87)
        await until(line.task.done)
        assert line.state is State.PAUSED
        assert line.forwarder.last_error is not None
        assert line.forwarder.last_error.reason.code == "poison_invalid_record"
        line.balance()


@in_virtual_time
async def test_what_no_transition_foresees_fails_with_its_reason(mqtt: FakeMqtt, kafka: FakeKafka) -> None:
    async with forwarding(mqtt, kafka) as line:
        await line.reach(State.RUNNING)
        line.forwarder.broke(ZeroDivisionError("a bug"))
        assert (line.state, line.code) == (State.FAILED, "internal_error")


# --- draining ---------------------------------------------------------------------------------------------------------


@in_virtual_time
async def test_a_drain_brings_everything_to_kafka_and_acknowledges_it_before_it_leaves(
    mqtt: FakeMqtt, kafka: FakeKafka
) -> None:
    kafka.judge = lambda _: STALL
    async with forwarding(mqtt, kafka) as line:
        await line.reach(State.RUNNING)
        messages = line.send(b"1", b"2")
        await until(lambda: kafka.sent)
        connection = line.connection
        line.forwarder.stop()
        await line.reach(State.DRAINING)
        await settled()
        assert not connection.reading
        connection.hand_over(FakeMessage("t", b"too late", 1, 99))
        line.balance()
        assert line.forwarder.tally.received == 2
        kafka.sent[0].answer()
        await until(line.task.done)
        assert line.state is State.PAUSED
        assert connection.acknowledged == messages
        assert connection.left
        assert line.forwarder.intake.in_flight == 0
        assert line.forwarder.intake.window.is_empty


@in_virtual_time
async def test_a_drain_that_kafka_does_not_answer_ends_in_time_with_nothing_written_afterwards(
    mqtt: FakeMqtt, kafka: FakeKafka
) -> None:
    kafka.judge = lambda _: STALL
    async with forwarding(mqtt, kafka) as line:
        await line.reach(State.RUNNING)
        line.send(b"durable")
        line.send(b"gone", qos=0)
        await until(lambda: kafka.sent)
        at = now()
        line.forwarder.stop()
        await line.reach(State.PAUSED)
        assert 8 <= now() - at <= 15
        assert kafka.open_producers == 0
        sent = len(kafka.sent)
        await asyncio.sleep(60)
        kafka.sent[0].answer()
        assert len(kafka.sent) == sent
        assert kafka.values() == []
        assert line.forwarder.tally.dropped == {"shutdown": 1}
        assert line.forwarder.intake.owed == 1
        assert line.forwarder.intake.held == 0
        line.balance()


@in_virtual_time
async def test_without_a_durable_session_what_kafka_did_not_confirm_is_dropped_and_counted(
    mqtt: FakeMqtt, kafka: FakeKafka
) -> None:
    kafka.judge = lambda _: STALL
    async with forwarding(mqtt, kafka, source={"client_id": ""}) as line:
        await line.reach(State.RUNNING)
        line.send(b"1", b"2")
        await line.stop()
        assert line.forwarder.tally.dropped == {"shutdown": 2}
        assert line.forwarder.intake.in_flight == 0


@in_virtual_time
async def test_what_is_owed_is_lost_with_its_session_and_counted(mqtt: FakeMqtt, kafka: FakeKafka) -> None:
    kafka.judge = lambda _: STALL
    async with forwarding(mqtt, kafka) as line:
        await line.reach(State.RUNNING)
        line.send(b"1")
        await line.stop()
        assert line.forwarder.intake.owed == 1
        mqtt.sessions.clear()
        line.again()
        await line.reach(State.RUNNING)
        line.balance()
        assert line.forwarder.tally.dropped == {"session_lost": 1}
        assert line.forwarder.tally.sessions_lost == 1
        await line.stop()
        line.forwarder.forget_session()
        line.balance()


@in_virtual_time
async def test_a_drain_without_mqtt_waits_for_kafka_all_the_same(mqtt: FakeMqtt, kafka: FakeKafka) -> None:
    kafka.judge = lambda _: STALL
    async with forwarding(mqtt, kafka) as line:
        await line.reach(State.RUNNING)
        line.send(b"1")
        await until(lambda: kafka.sent)
        mqtt.away = AWAY
        line.connection.end(LOST)
        await line.reach(State.RETRYING)
        line.forwarder.stop()
        await line.reach(State.DRAINING)
        kafka.sent[0].answer()
        await until(line.task.done)
        assert line.state is State.PAUSED
        assert line.forwarder.tally.delivered == 1
        assert line.forwarder.intake.in_flight == 0


@in_virtual_time
async def test_a_redelivery_after_the_drain_of_what_kafka_has_is_not_written_again(
    mqtt: FakeMqtt, kafka: FakeKafka
) -> None:
    async with forwarding(mqtt, kafka) as line:
        await line.reach(State.RUNNING)
        await line.show_that_ids_count_up()
        kafka.judge = lambda _: STALL
        before = len(kafka.values())
        messages = line.send(b"1")
        await until(lambda: kafka.sent[-1].values == [b"1"])
        mqtt.away = AWAY
        line.connection.end(LOST)
        await line.reach(State.RETRYING)
        kafka.sent[-1].answer()
        await settled()
        await line.stop()
        mqtt.away = None
        line.again()
        await line.reach(State.RUNNING)
        line.send_again(*messages)
        await settled()
        assert line.connection.acknowledged
        assert kafka.values()[before:] == [b"1"]
        assert line.forwarder.tally.deduplicated == 1
        line.balance()


@in_virtual_time
async def test_stopped_before_anything_is_connected_it_is_paused_at_once(mqtt: FakeMqtt, kafka: FakeKafka) -> None:
    mqtt.hang_in = "connect"
    kafka.start_hangs = True
    async with forwarding(mqtt, kafka) as line:
        await settled()
        at = now()
        await line.stop()
        assert line.state is State.PAUSED
        assert now() - at < 0.1


def test_cancelled_at_any_time_it_leaves_nothing_running() -> None:
    @in_virtual_time
    async def cancelled_after(turns: int) -> None:
        mqtt, kafka = FakeMqtt(), FakeKafka()
        async with forwarding(mqtt, kafka) as line:
            for turn in range(turns):
                await asyncio.sleep(0)
                if turn == 20 and mqtt.open:
                    line.send(b"1", b"2")
                if turn == 25:
                    line.forwarder.stop()
            line.task.cancel()
            await asyncio.wait([line.task])
            line.balance()
            assert line.task.cancelled() or line.state is State.PAUSED

    for turns in range(50):
        cancelled_after(turns)


# --- the status -------------------------------------------------------------------------------------------------------


def stored(spec: Mapping) -> StoredMapping:
    at = datetime(2026, 1, 1, tzinfo=UTC)
    return StoredMapping(spec, 7, "api", at, at)


@in_virtual_time
async def test_the_status_shows_both_sides_the_counters_and_the_last_error(mqtt: FakeMqtt, kafka: FakeKafka) -> None:
    async with forwarding(mqtt, kafka) as line:
        before = line.forwarder.status(stored(line.spec), "base")
        assert (before.mqtt.connected, before.mqtt.session_present, before.last_message_at) == (False, None, None)
        await line.reach(State.RUNNING)
        line.send(b"1")
        await until(lambda: line.forwarder.tally.delivered)
        line.connection.end(LOST)
        await line.reach(State.RETRYING)
        await line.reach(State.RUNNING)
        status = line.forwarder.status(stored(line.spec), "base")
        assert (status.state, status.desired, status.generation) == (State.RUNNING, "running", 1)  # the one that runs
        assert status.mqtt.model_dump() == {
            "connected": True,
            "session_present": True,
            "protocol": "5",
            "client_id": "base-m",
            "durable": True,
            "granted_qos": {"t": 1},
            "session_expiry": 86400,
        }
        assert (status.counters.received, status.counters.delivered, status.counters.reconnects) == (1, 1, 1)
        assert status.last_error is not None
        assert status.last_error.reason == "mqtt_connection_lost"
        assert status.reason is None
        assert status.last_message_at is not None
        line.forwarder.stop()
        await until(line.task.done)
        paused = line.forwarder.status(stored(line.spec.model_copy(update={"paused": True})), "base")
        assert (paused.state, paused.desired, paused.mqtt.connected) == (State.PAUSED, "paused", False)


@in_virtual_time
async def test_the_status_of_a_session_without_a_client_id_shows_the_assigned_one(
    mqtt: FakeMqtt, kafka: FakeKafka
) -> None:
    async with forwarding(mqtt, kafka, source={"client_id": ""}) as line:
        await line.reach(State.RUNNING)
        status = line.forwarder.status(stored(line.spec), "base")
        assert (status.mqtt.client_id, status.mqtt.durable) == ("assigned", False)
        assert status.warnings
