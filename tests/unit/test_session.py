"""The session: its row is written before the broker is asked; whatever the broker does it comes back, or says why."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import pytest

from server.core.lifecycle import Reason
from server.core.mapping import Mapping
from server.core.subscription import Session, Subscription
from server.mqtt.port import ConnectionEndedError, Ended
from server.runtime.counters import Tally
from server.runtime.ending import end_session, end_unknown_session
from server.runtime.intake import Intake
from server.runtime.ledger import Ledger
from server.runtime.session import MqttSession, SessionMemory, SessionStoppedError
from tests.fakemqtt import (
    AWAY,
    LOST,
    SILENT,
    TAKEOVER,
    WRONG_VERSION,
    FakeConnection,
    FakeMessage,
    FakeMqtt,
    NotingStore,
)
from tests.virtualtime import in_virtual_time, now, settled, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from server.core.acks import AckWindow, Arrival, Delivery

ROW = Session(
    "base-m", "m", protocol="5", subscriptions=(Subscription("a", 1, None, 1),), established=True, last_identifier=0
)


class Sink:
    """Takes messages, and confirms them when told."""

    def __init__(self, window: AckWindow[Any]) -> None:
        self._window = window
        self.taken: list[Delivery] = []
        self.arrivals: list[Arrival[Any]] = []
        self.in_flight_bytes = 0
        self.automatic = True

    @property
    def unconfirmed(self) -> int:
        return len(self.arrivals)

    def add(self, arrival: Arrival[Any], messages: Sequence[Delivery]) -> None:
        arrival.open_parts += 1
        self.taken += messages
        self.arrivals.append(arrival)
        if self.automatic:
            self.confirm()

    def confirm(self) -> None:
        while self.arrivals:
            self._window.confirm(self.arrivals.pop(0))


@dataclass
class Bench:
    """A session that runs."""

    mqtt: FakeMqtt
    store: NotingStore
    ledger: Ledger
    session: MqttSession
    intake: Intake
    sink: Sink
    tally: Tally
    memory: SessionMemory
    told: list[Reason | None]
    task: asyncio.Task[None]

    @property
    def state(self) -> str | None:
        reason = self.told[-1] if self.told else Reason("nothing", "")
        return reason.code if reason else None

    @property
    def connection(self) -> FakeConnection:
        (connection,) = self.mqtt.open
        return connection

    async def ready(self) -> None:
        await until(lambda: self.state is None and self.mqtt.open)
        await settled()

    async def lose(self, ended: Ended = LOST) -> None:
        """End the connection and wait until that is known."""
        self.connection.end(ended)
        await until(lambda: self.told[-1:] == [ended.reason])


@asynccontextmanager
async def running(
    mqtt: FakeMqtt,
    *rows: Session,
    topic: str | list[str] = "a",
    memory: SessionMemory | None = None,
    broker: dict[str, Any] | None = None,
    start: bool = True,
    **source: Any,
) -> AsyncIterator[Bench]:
    """Run the session of the mapping m."""
    spec = Mapping.model_validate({"name": "m", "mqtt": {"topic": topic, **source}, "kafka": {"topic": "k"}})
    store = NotingStore(mqtt.asked.append, *rows)
    ledger = Ledger(store.as_store())
    await ledger.load()
    tally = Tally()
    intake = Intake(tally)
    intake.budget = 10**6
    sink = Sink(intake.window)
    intake.into(sink)  # type: ignore[arg-type]
    told: list[Reason | None] = []

    class Events:
        def mqtt_trouble(self, reason: Reason | None, *, unheard_seconds: float = 0.0) -> None:
            assert not unheard_seconds
            told.append(reason)

    memory = memory or SessionMemory()
    session = MqttSession(
        spec,
        broker=mqtt.broker(**(broker or {})),
        ledger=ledger,
        intake=intake,
        tally=tally,
        memory=memory,
        events=Events(),
        random=lambda: 0.0,
    )
    task = asyncio.create_task(session.run() if start else asyncio.sleep(0))
    try:
        yield Bench(mqtt, store, ledger, session, intake, sink, tally, memory, told, task)
    finally:
        task.cancel()
        await asyncio.wait([task])
        await session.leave()
        assert mqtt.open == []


@pytest.fixture
def mqtt() -> FakeMqtt:
    return FakeMqtt()


# --- the row ----------------------------------------------------------------------------------------------------------


@in_virtual_time
async def test_the_row_is_written_before_the_first_connect_and_the_union_before_each_subscribe(mqtt: FakeMqtt) -> None:
    async with running(mqtt, topic=["a", "b"]) as bench:
        await bench.ready()
        assert mqtt.asked == [
            ("save", "base-m", ()),
            ("connect", "base-m", "5", False, 86400),
            ("save", "base-m", ("a", "b")),
            ("subscribe", "base-m", ("a", "b")),
            ("save", "base-m", ("a", "b")),
        ]
        row = bench.store.rows["base-m"]
        assert row.established
        assert [each.granted for each in row.subscriptions] == [1, 1]
        assert bench.session.granted_qos == {"a": 1, "b": 1}


@in_virtual_time
async def test_changed_filters_keep_the_old_ones_in_the_row_until_they_are_unsubscribed(mqtt: FakeMqtt) -> None:
    mqtt.sessions["base-m"] = {"a"}
    async with running(mqtt, ROW, topic="b") as bench:
        await bench.ready()
        assert mqtt.asked == [
            ("connect", "base-m", "5", False, 86400),
            ("save", "base-m", ("a", "b")),
            ("subscribe", "base-m", ("b",)),
            ("unsubscribe", "base-m", ("a",)),
            ("save", "base-m", ("b",)),
        ]
        assert mqtt.sessions["base-m"] == {"b"}


@in_virtual_time
async def test_a_session_that_is_present_and_has_what_is_wanted_is_not_subscribed_again(mqtt: FakeMqtt) -> None:
    mqtt.sessions["base-m"] = {"a"}
    async with running(mqtt, ROW) as bench:
        await bench.ready()
        assert mqtt.asked == [("connect", "base-m", "5", False, 86400)]
        assert bench.tally.sessions_lost == 0
        assert bench.session.granted is not None
        assert bench.session.granted.session_present


@in_virtual_time
async def test_a_lost_session_is_counted_once_and_subscribed_again(mqtt: FakeMqtt) -> None:
    async with running(mqtt, ROW) as bench:
        await bench.ready()
        assert bench.tally.sessions_lost == 1
        assert mqtt.asks("subscribe") == [("subscribe", "base-m", ("a",))]
        await bench.lose()
        await bench.ready()
        assert bench.tally.sessions_lost == 1
        assert len(mqtt.asks("subscribe")) == 1
        assert bench.tally.mqtt_reconnects.total() == 1


@in_virtual_time
async def test_a_session_to_begin_afresh_begins_afresh_once_and_is_not_called_lost(mqtt: FakeMqtt) -> None:
    mqtt.sessions["base-m"] = {"a"}
    async with running(mqtt, replace(ROW, clean_start=True)) as bench:
        await bench.ready()
        await bench.lose()
        await bench.ready()
        assert [asked[3] for asked in mqtt.asks("connect")] == [True, False]
        assert bench.tally.sessions_lost == 0


@in_virtual_time
async def test_a_crash_between_subscribe_and_its_row_subscribes_again(mqtt: FakeMqtt) -> None:
    mqtt.sessions["base-m"] = {"a"}
    unanswered = replace(ROW, subscriptions=(Subscription("a", 1),))
    async with running(mqtt, unanswered) as bench:
        await bench.ready()
        assert mqtt.asks("subscribe") == [("subscribe", "base-m", ("a",))]


@in_virtual_time
async def test_without_a_client_id_there_is_no_row_and_every_connection_starts_clean(mqtt: FakeMqtt) -> None:
    async with running(mqtt, client_id="") as bench:
        await bench.ready()
        await bench.lose()
        await bench.ready()
        assert bench.store.rows == {}
        assert mqtt.asks("save", "connect") == [("connect", "", "5", True, 0)] * 2
        assert not bench.session.durable
        assert any("not durable" in warning for warning in bench.session.warnings)
        assert len(mqtt.asks("subscribe")) == 2
        assert bench.tally.sessions_lost == 0


@in_virtual_time
async def test_a_certificate_that_is_not_checked_is_warned_of(mqtt: FakeMqtt) -> None:
    async with running(mqtt, broker={"tls": {"insecure_skip_verify": True}}) as bench:
        await bench.ready()
        assert any("certificate is not checked" in warning for warning in bench.session.warnings)
    async with running(mqtt, broker={"tls": True}) as bench:
        await bench.ready()
        assert not bench.session.warnings


# --- coming back ------------------------------------------------------------------------------------------------------


@in_virtual_time
async def test_a_broker_that_is_away_is_a_reason_and_tried_again_until_it_is_there(mqtt: FakeMqtt) -> None:
    mqtt.away = AWAY
    async with running(mqtt) as bench:
        await until(lambda: len(mqtt.asks("connect")) == 5)
        assert bench.state == "mqtt_unreachable"
        mqtt.away = None
        await bench.ready()
        assert bench.tally.mqtt_reconnects.total() == 0


@in_virtual_time
async def test_a_refused_subscription_is_a_reason_leaves_the_connection_and_is_tried_again(mqtt: FakeMqtt) -> None:
    mqtt.refused_filters = {"a": 0x87}
    async with running(mqtt) as bench:
        await until(lambda: len(mqtt.asks("subscribe")) == 2)
        assert bench.state == "mqtt_subscription_refused"
        assert ("leave", "base-m") in mqtt.asked
        mqtt.refused_filters = {}
        await bench.ready()
        assert bench.session.granted_qos == {"a": 1}


@in_virtual_time
async def test_after_a_takeover_it_waits_at_least_ten_seconds(mqtt: FakeMqtt) -> None:
    async with running(mqtt) as bench:
        await bench.ready()
        await bench.lose(TAKEOVER)
        at = now()
        await bench.ready()
        assert now() - at > 9.99
        await bench.lose()
        at = now()
        await bench.ready()
        assert now() - at < 2.0


@pytest.mark.parametrize(("ended", "attached"), [(LOST, True), (TAKEOVER, False)])
def test_a_redelivery_is_attached_to_the_past_unless_another_client_took_the_session_over(
    mqtt: FakeMqtt, ended: Ended, attached: bool
) -> None:
    @in_virtual_time
    async def run() -> None:
        async with running(mqtt) as bench:
            await bench.ready()
            message = FakeMessage(packet_id=bench.connection.count_up() + 1)
            bench.sink.taken.clear()
            bench.sink.automatic = False
            bench.connection.hand_over(message)
            await bench.lose(ended)
            await bench.ready()
            bench.connection.hand_over(replace(message, duplicate=True))
            assert len(bench.sink.taken) == (1 if attached else 2)
            assert bench.tally.deduplicated == attached

    run()


@in_virtual_time
async def test_messages_before_the_subscription_is_done_are_taken(mqtt: FakeMqtt) -> None:
    mqtt.sessions["base-m"] = {"a"}
    mqtt.queued["base-m"] = [FakeMessage("a")]
    async with running(mqtt, ROW) as bench:
        await bench.ready()
        assert len(bench.sink.taken) == 1


# --- malformed packets ------------------------------------------------------------------------------------------------


def _malformed(sample: bytes) -> Ended:
    return Ended(Reason("mqtt_malformed_packet", "can't be decoded"), malformed=sample)


@in_virtual_time
async def test_the_same_malformed_packet_five_times_in_a_row_stops_the_session(mqtt: FakeMqtt) -> None:
    async with running(mqtt) as bench:
        for _ in range(4):
            await bench.ready()
            await bench.lose(_malformed(b"\x31"))
        await bench.ready()
        bench.connection.end(_malformed(b"\x31"))
        with pytest.raises(SessionStoppedError) as caught:
            await bench.task
        assert caught.value.reason.code == "mqtt_malformed_packet"
        assert "5 times" in caught.value.reason.detail


@in_virtual_time
async def test_other_malformed_packets_in_between_start_the_count_again(mqtt: FakeMqtt) -> None:
    async with running(mqtt) as bench:
        for sample in (b"1", b"1", b"1", b"1", b"2", b"1", b"1", b"1", b"1"):
            await bench.ready()
            await bench.lose(_malformed(sample))
        await bench.ready()


@in_virtual_time
async def test_another_end_in_between_starts_the_count_of_malformed_packets_again(mqtt: FakeMqtt) -> None:
    async with running(mqtt) as bench:
        for _ in range(2):
            for _ in range(4):
                await bench.ready()
                await bench.lose(_malformed(b"1"))
            await bench.ready()
            await bench.lose()
        await bench.ready()


@in_virtual_time
async def test_a_lost_session_judges_no_copy_by_the_identifiers_it_had(mqtt: FakeMqtt) -> None:
    had = tuple(Subscription(name, 1, number, 1) for number, name in enumerate(["x/#", "a/+", "+/b"], start=1))
    row = replace(ROW, subscriptions=had, last_identifier=3)
    mqtt.hang_in = "subscribe"
    async with running(mqtt, row, topic=["a/+", "+/b"]) as bench:
        await until(lambda: mqtt.asks("connect") and bench.intake.reads == 0 and mqtt.open)
        assert not bench.intake.copies.is_extra("q/b", [2])


# --- which version ----------------------------------------------------------------------------------------------------


@in_virtual_time
async def test_a_broker_that_refuses_mqtt_5_is_tried_over_311_at_once(mqtt: FakeMqtt) -> None:
    mqtt.refusals.append(WRONG_VERSION)
    async with running(mqtt, qos=2) as bench:
        at = now()
        await bench.ready()
        assert now() - at < 0.1
        assert [asked[2] for asked in mqtt.asks("connect")] == ["5", "3.1.1"]
        assert bench.session.granted_qos == {"a": 1}
        assert any("QoS 2 is capped" in warning for warning in bench.session.warnings)
        await bench.lose()
        await bench.ready()
        assert mqtt.asks("connect")[-1][2] == "3.1.1"


@in_virtual_time
async def test_three_silent_closes_allow_one_attempt_over_311(mqtt: FakeMqtt) -> None:
    mqtt.refusals.extend([SILENT] * 5)
    async with running(mqtt) as bench:
        await bench.ready()
        assert [asked[2] for asked in mqtt.asks("connect")] == ["5", "5", "5", "3.1.1", "5", "5"]


@in_virtual_time
async def test_a_session_that_worked_over_5_is_not_tried_over_311_because_of_silence(mqtt: FakeMqtt) -> None:
    mqtt.refusals.extend([SILENT] * 5)
    async with running(mqtt, ROW) as bench:
        await bench.ready()
        assert {asked[2] for asked in mqtt.asks("connect")} == {"5"}


@in_virtual_time
async def test_a_session_that_held_qos_2_is_never_resumed_over_311(mqtt: FakeMqtt) -> None:
    held = replace(ROW, held_qos2=True)
    mqtt.sessions["base-m"] = {"a"}
    mqtt.refusals.append(WRONG_VERSION)
    async with running(mqtt, held) as bench:
        await until(lambda: bench.state == "mqtt_qos2_session")
        assert [asked[2] for asked in mqtt.asks("connect")] == ["5"]
        await bench.ready()
        assert [asked[2] for asked in mqtt.asks("connect")] == ["5", "5"]
    mqtt.asked.clear()
    async with running(mqtt, held, broker={"protocol": "3.1.1"}) as bench:
        await until(lambda: len(bench.told) > 3)
        assert bench.state == "mqtt_qos2_session"
        assert mqtt.asks("connect") == []
        assert "reset-session" in bench.told[-1].detail  # type: ignore[union-attr]


@in_virtual_time
async def test_a_reset_session_that_held_qos_2_begins_afresh_over_311(mqtt: FakeMqtt) -> None:
    held = replace(ROW, held_qos2=True, clean_start=True)
    async with running(mqtt, held, broker={"protocol": "3.1.1"}) as bench:
        await bench.ready()
        # Clean Session 1 alone would make a session that ends with its connection.
        assert mqtt.asks("connect") == [
            ("connect", "base-m", "3.1.1", True, 0),
            ("connect", "base-m", "3.1.1", False, 86400),
        ]
        assert not bench.store.rows["base-m"].held_qos2


# --- what an operator should know -------------------------------------------------------------------------------------


@in_virtual_time
async def test_warnings_name_what_the_broker_does_less_well_than_asked(mqtt: FakeMqtt) -> None:
    mqtt.granted_qos, mqtt.identifiers, mqtt.expiry = 0, False, 60
    async with running(mqtt, topic=["a/+", "+/b"]) as bench:
        assert bench.session.warnings == []
        await bench.ready()
        text = "\n".join(bench.session.warnings)
        assert "duplicates are possible" in text
        assert "lower QoS" in text
        assert "60 s instead of 86400 s" in text


@in_virtual_time
async def test_all_is_well_without_warnings(mqtt: FakeMqtt) -> None:
    async with running(mqtt) as bench:
        await bench.ready()
        assert bench.session.warnings == []


# --- a client id that changed -----------------------------------------------------------------------------------------

FORMER = replace(ROW, client_id="former")


@in_virtual_time
async def test_after_a_changed_client_id_the_new_session_is_subscribed_before_the_old_is_drained_and_ended(
    mqtt: FakeMqtt,
) -> None:
    mqtt.sessions["former"] = {"a"}
    mqtt.queued["former"] = [FakeMessage("a", b"old")]
    async with running(mqtt, FORMER) as bench:
        await bench.ready()
        assert mqtt.asked == [
            ("save", "base-m", ()),
            ("connect", "base-m", "5", False, 86400),
            ("save", "base-m", ("a",)),
            ("subscribe", "base-m", ("a",)),
            ("save", "base-m", ("a",)),
            ("leave", "base-m"),
            ("connect", "former", "5", False, 86400),
            ("unsubscribe", "former", ("a",)),
            ("save", "former", ()),
            ("leave", "former"),
            ("connect", "former", "5", True, 0),
            ("leave", "former"),
            ("forget", "former"),
            ("connect", "base-m", "5", False, 86400),
        ]
        assert [message.payload for message in bench.sink.taken] == [b"old"]
        assert mqtt.sessions == {"base-m": {"a"}}
        assert bench.store.rows.keys() == {"base-m"}
        assert bench.tally.sessions_lost == 0


@in_virtual_time
async def test_the_old_session_is_drained_until_it_is_quiet_and_kafka_has_everything(mqtt: FakeMqtt) -> None:
    mqtt.sessions["former"] = {"a"}
    async with running(mqtt, FORMER) as bench:
        await until(lambda: mqtt.asks("unsubscribe"))
        await settled()
        old = bench.connection
        for number in range(5):
            old.hand_over(FakeMessage("a", b"%d" % number, packet_id=number + 1))
            await asyncio.sleep(0.9)
        assert old.is_open
        bench.sink.automatic = False
        old.hand_over(FakeMessage("a", b"slow", packet_id=9))
        await asyncio.sleep(20)
        assert old.is_open
        bench.sink.confirm()
        bench.intake.progressed()
        await until(lambda: not old.is_open)
        assert len(old.acknowledged) == 6
        bench.sink.automatic = True
        await bench.ready()


@in_virtual_time
async def test_all_old_sessions_are_unsubscribed_before_any_is_drained(mqtt: FakeMqtt) -> None:
    rows = [replace(FORMER, client_id=f"former-{number}") for number in range(3)]
    mqtt.sessions |= {row.client_id: {"a"} for row in rows}
    async with running(mqtt, *rows) as bench:
        await until(lambda: len(mqtt.asks("unsubscribe")) == 3)
        assert bench.state == "mqtt_former_session"
        at = now()
        await bench.ready()
        assert now() - at > 8.9
        assert mqtt.sessions == {"base-m": {"a"}}
        assert [asked[1] for asked in mqtt.asks("forget")] == ["former-0", "former-1", "former-2"]


@in_virtual_time
async def test_a_broker_that_closes_again_and_again_soon_after_connecting_is_taken_for_a_takeover(
    mqtt: FakeMqtt,
) -> None:
    closed = replace(LOST, unexplained=True)
    async with running(mqtt) as bench:
        for _ in range(2):
            await bench.ready()
            await bench.lose(closed)
        await bench.ready()
        bench.connection.end(closed)
        await until(lambda: bench.state == "mqtt_takeover")
        assert "'base-m'" in bench.told[-1].detail  # type: ignore[union-attr]
        at = now()
        await bench.ready()
        assert now() - at > 9.99
        await asyncio.sleep(40)
        await bench.lose(closed)  # after a while it is what it says


@in_virtual_time
async def test_what_looks_like_a_takeover_leaves_it_to_the_packet_ids_what_may_be_attached(mqtt: FakeMqtt) -> None:
    closed = replace(LOST, unexplained=True)
    async with running(mqtt) as bench:
        bench.sink.automatic = False
        for _ in range(2):
            await bench.ready()
            await bench.lose(closed)
        await bench.ready()
        bench.connection.hand_over(FakeMessage("a", b"waits for Kafka", packet_id=7))
        bench.connection.end(closed)
        await until(lambda: bench.state == "mqtt_takeover")
        assert list(bench.intake.window.candidate_ids) == [7]
        bench.sink.confirm()


@in_virtual_time
async def test_an_old_session_whose_connection_breaks_is_drained_again(mqtt: FakeMqtt) -> None:
    mqtt.sessions["former"] = {"a"}
    async with running(mqtt, FORMER) as bench:
        await until(lambda: mqtt.asks("unsubscribe"))
        await settled()
        await bench.lose()
        await bench.ready()
        assert [asked[1] for asked in mqtt.asks("connect")] == [
            "base-m", "former", "base-m", "former", "former", "base-m",
        ]  # fmt: skip
        assert mqtt.sessions.keys() == {"base-m"}


@in_virtual_time
async def test_a_mapping_that_is_not_durable_any_more_still_ends_its_former_session(mqtt: FakeMqtt) -> None:
    mqtt.sessions["former"] = {"a"}
    async with running(mqtt, FORMER, client_id="") as bench:
        await bench.ready()
        assert mqtt.sessions == {}
        assert bench.store.rows == {}


# --- ending -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
def test_a_session_is_ended_by_a_clean_start_with_expiry_0(mqtt: FakeMqtt, protocol: Any) -> None:
    @in_virtual_time
    async def run() -> None:
        mqtt.sessions["base-m"] = {"a"}
        await end_session(mqtt.broker(), ROW.client_id, protocol)
        assert mqtt.asked == [("connect", "base-m", protocol, True, 0), ("leave", "base-m")]
        assert mqtt.sessions == {}
        mqtt.away = AWAY
        with pytest.raises(ConnectionEndedError):
            await end_session(mqtt.broker(), ROW.client_id, protocol)

    run()


@pytest.mark.parametrize(
    ("refusals", "tried"),
    [
        ([], ["5"]),
        ([WRONG_VERSION], ["5", "3.1.1"]),
        ([SILENT] * 3, ["5", "5", "5", "3.1.1"]),
    ],
)
def test_an_unknown_session_is_ended_over_the_version_the_broker_speaks(
    mqtt: FakeMqtt, refusals: list[Ended], tried: list[str]
) -> None:
    @in_virtual_time
    async def run() -> None:
        mqtt.sessions["other"] = {"a"}
        mqtt.refusals += refusals
        await end_unknown_session(mqtt.broker(), "other")
        assert [asked[2] for asked in mqtt.asks("connect")] == tried
        assert mqtt.sessions == {}

    run()


@pytest.mark.parametrize(("refusals", "tries"), [([AWAY], 1), ([SILENT] * 9, 4), ([WRONG_VERSION] * 9, 2)])
def test_an_unknown_session_at_a_broker_that_refuses_is_not_tried_for_ever(
    mqtt: FakeMqtt, refusals: list[Ended], tries: int
) -> None:
    @in_virtual_time
    async def run() -> None:
        mqtt.refusals += refusals
        with pytest.raises(ConnectionEndedError):
            await end_unknown_session(mqtt.broker(), "other")
        assert len(mqtt.asks("connect")) == tries

    run()


_HISTORIES: dict[str, tuple[tuple[Session, ...], dict[str, Any]]] = {
    "first": ((), {}),
    "changed filters": ((ROW,), {"topic": "b"}),
    "former client id": ((FORMER,), {}),
}


@pytest.mark.parametrize("history", _HISTORIES)
def test_cancelled_at_any_await_it_leaves_no_connection_and_no_task(history: str) -> None:
    rows, options = _HISTORIES[history]

    @in_virtual_time
    async def cancelled_after(turns: int) -> None:
        mqtt = FakeMqtt(sessions={row.client_id: {"a"} for row in rows})
        async with running(mqtt, *rows, **options) as bench:
            for _ in range(turns):
                await asyncio.sleep(0)
            if turns > 30:
                await asyncio.sleep(turns / 15)
            bench.task.cancel()
            await asyncio.wait([bench.task])
            await bench.session.leave()
            assert mqtt.open == []
            assert bench.session.connection is None
        # What the row says covers what the broker may have.
        for client_id, filters in mqtt.sessions.items():
            assert filters <= {each.topic_filter for each in bench.store.rows[client_id].subscriptions}

    for turns in range(60):
        cancelled_after(turns)


@pytest.mark.parametrize("call", ["connect", "connected", "subscribe", "unsubscribe"])
def test_cancelled_while_the_broker_does_not_answer_it_leaves_nothing_behind(mqtt: FakeMqtt, call: str) -> None:
    @in_virtual_time
    async def run() -> None:
        mqtt.sessions["base-m"] = {"a"}
        mqtt.hang_in = call
        async with running(mqtt, ROW, topic="b") as bench:
            await settled(50)
            assert bench.told == []
            bench.task.cancel()
            await asyncio.wait([bench.task])
            await bench.session.leave()
            assert mqtt.open == []

    run()
