"""Intake: what is received once is counted once, acknowledged in its turn, and never stops the reader for good."""

from __future__ import annotations

import dataclasses
import itertools
import time
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from server.core.acks import CANDIDATE_BYTES, Fingerprint
from server.core.connections import MqttConnection
from server.core.numbering import ENOUGH
from server.core.pace import FULL_READS, LARGE_READ, TRIAL_SECONDS, Pace
from server.core.rests import Rests
from server.core.subscription import CopyFilter, Subscription
from server.core.topics import matches
from server.mqtt.port import Granted, SessionRequest
from server.runtime.counters import Tally
from server.runtime.intake import Intake

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from server.core.acks import Arrival
    from server.kafka.sink import Sink
    from server.mqtt.port import Connection
    from server.mqtt.port import Message as PortMessage


N = ENOUGH + 2  # what a broker has sent when it has shown that it counts


@dataclass(frozen=True)
class Message:
    """A message as an adapter hands it over."""

    packet_id: int | None = 1
    payload: bytes = b"p"
    topic: str = "t"
    qos: int = 1
    duplicate: bool = False
    subscription_ids: list[int] = field(default_factory=list)

    def again(self) -> Message:
        return dataclasses.replace(self, duplicate=True)


class FakeConnection:
    """Notes what is acknowledged and whether it reads."""

    withheld: tuple[tuple[int, Fingerprint], ...] = ()

    def __init__(self, *, session_present: bool = False) -> None:
        self.granted = Granted("5", session_present, "c", None, subscription_identifiers=True)
        self.is_open = True
        self.reading = True
        self.switched = 0
        self.acknowledged: list[PortMessage] = []
        self.asked: list[Callable[[], None]] = []
        self.rests: list[tuple[float, Callable[[], None]]] = []

    def rest(self, seconds: float, then: Callable[[], None]) -> None:
        self.rests.append((seconds, then))

    def when_processed(self, call: Callable[[], None]) -> None:
        self.asked.append(call)

    def answer(self) -> None:
        """The broker has processed everything written so far."""
        while self.asked:
            self.asked.pop(0)()

    def acknowledge(self, messages: Sequence[PortMessage]) -> None:
        assert self.is_open
        self.acknowledged += messages

    def pause_reading(self) -> None:
        assert self.reading
        self.reading = False
        self.switched += 1

    def resume_reading(self) -> None:
        assert not self.reading
        self.reading = True
        self.switched += 1


class FakeSink:
    """Holds what it is given, one part per `add`, until the test confirms it."""

    def __init__(self, intake: Intake) -> None:
        self.intake = intake
        self.parts: list[tuple[Arrival[Any], list[Any]]] = []
        self.taken: list[Any] = []
        self.in_flight_bytes = 0
        self.drop_at_once = False

    @property
    def unconfirmed(self) -> int:
        return sum(len(messages) for _, messages in self.parts)

    def add(self, arrival: Arrival[Any], messages: Sequence[Any]) -> None:
        assert messages
        if self.drop_at_once:
            return
        arrival.open_parts += 1
        self.parts.append((arrival, list(messages)))
        self.taken += messages

    def confirm(self, index: int = 0, *, progress: bool = True) -> int:
        arrival, messages = self.parts.pop(index)
        self.intake.window.confirm(arrival)
        if progress:
            self.intake.progressed()
        return len(messages)


class Rig:
    """An intake between a fake sink and a fake connection."""

    def __init__(self, *, budget: int = 1_000_000, rest: float = 0.0) -> None:
        self.tally = Tally()
        self.intake = Intake(self.tally, rests=Rests(rest))
        self.intake.budget = budget
        self.sink = self.new_sink()
        self.connection = self.connect()

    @classmethod
    def counting(cls) -> Rig:
        """One whose broker has shown that it counts its packet ids up, from 1 to N."""
        rig = cls()
        for packet_id in range(1, N + 1):
            rig.receive(Message(packet_id))
            rig.sink.confirm()
            rig.connection.answer()
        rig.sink.taken.clear()
        rig.connection.acknowledged.clear()
        rig.tally.received = 0
        return rig

    def new_sink(self) -> FakeSink:
        self.sink = FakeSink(self.intake)
        self.intake.into(cast("Sink", self.sink))
        return self.sink

    def connect(
        self, *, session_present: bool = False, unreleased: set[int] | None = None, client_id: str = "c"
    ) -> FakeConnection:
        self.connection = FakeConnection(session_present=session_present)
        request = SessionRequest(
            MqttConnection(host="mqtt"),
            client_id,
            clean_start=False,
            session_expiry=60,
            receive_maximum=65_534,
            unreleased=set() if unreleased is None else unreleased,
        )
        self.intake.attach(cast("Connection", self.connection), request)
        return self.connection

    def lose(self, *, takeover: bool = False) -> None:
        self.connection.is_open = False
        self.intake.detach(takeover=takeover)

    def receive(self, *messages: Message, size: int = 10) -> None:
        self.intake.received(cast("Sequence[PortMessage]", messages), size)
        self.intake.all_received()

    def give_up(self) -> None:
        """What a forwarder does when its pipeline ends."""
        unconfirmed = [(arrival, message) for arrival, messages in self.sink.parts for message in messages]
        self.intake.acknowledge_confirmed(unconfirmed)
        if self.connection.is_open:
            self.lose()
        self.intake.give_up(unconfirmed)


# --- acknowledgements -------------------------------------------------------------------------------------------------


def test_nothing_is_acknowledged_before_kafka_has_it_and_everything_after_in_receive_order() -> None:
    rig = Rig()
    first, second, third = Message(1), Message(2), Message(3)
    rig.receive(first)
    rig.receive(second, third)
    rig.sink.confirm(1)
    assert rig.connection.acknowledged == []
    rig.sink.confirm(0)
    assert rig.connection.acknowledged == [first, second, third]
    assert rig.intake.held == 0


def test_what_is_dropped_by_rule_at_once_is_acknowledged_at_once() -> None:
    # Nothing is sent to Kafka, so no confirmation will come that could carry the acknowledgement along.
    rig = Rig()
    rig.sink.drop_at_once = True
    rig.receive(Message(1))
    assert rig.connection.acknowledged == [Message(1)]


def test_while_the_reader_rests_acknowledgements_wait_for_the_end_of_it() -> None:
    """Mosquitto leaves Nagle's algorithm on: what it holds back comes when we write, and shall come all at once."""
    rig = Rig(rest=0.004)
    rig.receive(Message(1))
    ((seconds, rested),) = rig.connection.rests
    assert seconds == 0.004
    rig.sink.confirm()
    assert rig.connection.acknowledged == []
    rested()
    assert rig.connection.acknowledged == [Message(1)]
    rig.intake.progressed()


def test_a_read_that_comes_in_parts_is_one_read_to_the_pace() -> None:
    """It was large: that its last part is small is no reason to rest."""
    rig = Rig(rest=0.004, budget=10 * LARGE_READ)
    for packet_id, size in ((1, LARGE_READ), (2, 10)):
        rig.intake.received([cast("PortMessage", Message(packet_id))], size)
        assert rig.connection.rests == []
    rig.intake.all_received()
    assert rig.connection.rests == []
    rig.receive(Message(3))
    assert len(rig.connection.rests) == 1


def test_a_read_without_messages_is_none_to_the_pace() -> None:
    rig = Rig(rest=0.004)
    rig.intake.all_received()
    assert rig.connection.rests == []


def test_in_a_small_window_at_qos_2_what_is_not_released_counts_as_in_flight(monkeypatch: pytest.MonkeyPatch) -> None:
    """PUBREC makes no room in the broker's window, PUBCOMP does: reads bring few messages, and the window is full."""
    unreleased: set[int] = set()
    rig, ids, clock = Rig(rest=0.004), itertools.count(1), itertools.count(1.0, TRIAL_SECONDS)
    monkeypatch.setattr("server.runtime.intake.time", SimpleNamespace(monotonic=lambda: next(clock), time=time.time))
    rig.connect(unreleased=unreleased)
    rested = []
    for count in (50, *[1, 2, 3] * FULL_READS):
        received = [Message(packet_id, qos=2) for packet_id in itertools.islice(ids, count)]
        unreleased.clear()
        unreleased.update(range(60_000, 60_050 - count))
        rig.receive(*received)
        rig.sink.confirm(progress=False)
        rested.append(bool(rig.connection.rests))
        for _, over in rig.connection.rests:
            over()
        rig.intake.progressed()
        rig.connection.rests.clear()
    assert rested[:FULL_READS] == [True] * FULL_READS
    assert False in rested


def test_memory_that_a_rest_held_is_free_for_reading_after_it() -> None:
    rig = Rig(rest=0.004, budget=15)
    rig.receive(Message(1), size=20)
    assert not rig.connection.reading
    rig.sink.confirm()
    assert not rig.connection.reading
    rig.connection.rests[0][1]()
    assert rig.connection.reading


def test_what_is_confirmed_after_the_rest_is_acknowledged_at_once() -> None:
    rig = Rig(rest=0.004)
    rig.receive(Message(1))
    rig.connection.rests[0][1]()
    rig.sink.confirm()
    assert rig.connection.acknowledged == [Message(1)]


def test_a_new_connection_does_not_wait_for_the_rest_of_the_last() -> None:
    rig = Rig(rest=0.004)
    rig.receive(Message(1))
    rig.lose()
    rig.connect()
    rig.intake._pace = Pace(Rests(0.0), 1)
    rig.receive(Message(1))
    rig.sink.confirm(1)
    assert rig.connection.acknowledged == [Message(1)]


def test_nothing_is_acknowledged_on_a_later_connection() -> None:
    rig = Rig()
    rig.receive(Message(1))
    rig.lose()
    later = rig.connect(session_present=True)
    rig.sink.confirm()
    assert later.acknowledged == []


def test_nothing_is_acknowledged_on_a_connection_that_is_closing() -> None:
    rig = Rig()
    rig.receive(Message(1))
    rig.connection.is_open = False
    rig.sink.confirm()
    assert rig.connection.acknowledged == []


def test_what_comes_without_a_sink_or_while_draining_stays_with_the_broker() -> None:
    rig = Rig()
    rig.intake.close()
    rig.receive(Message(1))
    rig.intake.into(None)
    rig.receive(Message(2))
    assert rig.tally.received == 0
    assert rig.intake.last_message_at is None
    assert rig.connection.acknowledged == []


def test_a_connection_that_is_lost_twice_is_lost_once() -> None:
    rig = Rig()
    rig.lose()
    rig.lose()
    rig.intake.progressed()
    assert rig.intake.in_flight == 0


# --- redeliveries -----------------------------------------------------------------------------------------------------


def test_a_redelivery_is_attached_and_acknowledged_when_kafka_has_what_it_repeats() -> None:
    rig = Rig.counting()
    rig.receive(Message(N + 1))
    rig.lose()
    rig.connect(session_present=True)
    rig.receive(Message(N + 1).again())
    assert rig.sink.taken == [Message(N + 1)]
    assert (rig.tally.received, rig.tally.deduplicated) == (1, 1)
    assert rig.connection.acknowledged == []
    rig.sink.confirm()
    assert rig.connection.acknowledged == [Message(N + 1).again()]


def test_a_redelivery_of_what_kafka_has_is_acknowledged_at_once() -> None:
    rig = Rig.counting()
    rig.receive(Message(N + 1))
    rig.connection.is_open = False
    rig.sink.confirm()
    rig.lose()
    rig.connect(session_present=True)
    rig.receive(Message(N + 1).again())
    assert rig.connection.acknowledged == [Message(N + 1).again()]


@pytest.mark.parametrize(
    ("session_present", "takeover", "message"),
    [
        (False, False, Message(N + 1).again()),
        (True, True, Message(N + 1).again()),
        (True, False, Message(N + 1)),
        (True, False, Message(N + 2).again()),
        (True, False, Message(N + 1, payload=b"q").again()),
        (True, False, Message(N + 1, topic="u").again()),
        (True, False, Message(N + 1, qos=2).again()),
    ],
)
def test_when_in_doubt_a_redelivery_is_produced_again(session_present: bool, takeover: bool, message: Message) -> None:
    rig = Rig.counting()
    rig.receive(Message(N + 1))
    rig.lose(takeover=takeover)
    rig.connect(session_present=session_present)
    rig.receive(message)
    assert rig.sink.taken == [Message(N + 1), message]
    assert (rig.tally.received, rig.tally.deduplicated) == (2, 0)


def test_of_a_broker_that_has_not_shown_that_it_counts_every_redelivery_is_produced_again() -> None:
    """One that takes the smallest free id has given it to another message that says the same, for all we know."""
    rig = Rig()
    rig.receive(Message(1), Message(2))
    rig.lose()
    rig.connect(session_present=True)
    rig.receive(Message(1).again(), Message(2).again())
    assert len(rig.sink.taken) == 4
    assert rig.intake.window.candidates == 0


def test_of_a_broker_that_does_not_count_no_qos_2_id_is_believed_to_be_answered() -> None:
    rig = Rig()
    rig.receive(Message(1, qos=2))
    rig.sink.confirm()
    rig.lose()
    rig.connect(session_present=True, unreleased={1})
    rig.receive(Message(1, qos=2).again())
    assert len(rig.sink.taken) == 2


def test_a_redelivery_that_does_not_fit_what_was_settled_ends_all_belief() -> None:
    """A broker that numbers afresh begins with 1, which it had freed."""
    rig = Rig.counting()
    rig.receive(Message(N + 1), Message(N + 2))
    rig.lose()
    rig.connect(session_present=True)
    rig.receive(Message(1).again(), Message(N + 2).again())
    assert len(rig.sink.taken) == 4


def test_in_another_session_packet_ids_mean_nothing_of_the_past() -> None:
    rig = Rig.counting()
    rig.receive(Message(N + 1))
    rig.lose()
    rig.connect(session_present=True, client_id="other")
    rig.receive(Message(N + 1).again())
    assert len(rig.sink.taken) == 2


def test_only_one_redelivery_is_attached_to_a_delivery() -> None:
    rig = Rig.counting()
    rig.receive(Message(N + 1))
    rig.lose()
    rig.connect(session_present=True)
    rig.receive(Message(N + 1).again())
    rig.receive(Message(N + 1).again())
    assert len(rig.sink.taken) == 2


def test_a_new_message_ends_the_replay_so_nothing_older_is_attached_to() -> None:
    """A broker that renumbers redelivers 7 as 1, and later gives 7 to another message that says the same.

    That one is sent, lost before it is read, and redelivered: it must not pass for the first.
    """
    rig = Rig.counting()
    on, off = Message(N + 7, payload=b"on"), Message(N + 2, payload=b"off")
    rig.receive(on)
    rig.lose()
    rig.connect(session_present=True)
    rig.receive(Message(N + 1, payload=b"on").again(), off)
    while rig.sink.parts:
        rig.sink.confirm()
    rig.lose()
    rig.connect(session_present=True)
    rig.receive(Message(N + 7, payload=b"on").again())
    assert [message.payload for message in rig.sink.taken] == [b"on", b"on", b"off", b"on"]


def test_what_is_remembered_for_redeliveries_is_forgotten_when_the_replay_is_over() -> None:
    rig = Rig.counting()
    rig.receive(Message(N + 1), Message(N + 2))
    rig.lose()
    rig.connect(session_present=True)
    rig.receive(Message(None, qos=0))
    assert rig.intake.window.candidates == 2  # QoS 0 keeps no order with the others
    rig.receive(Message(N + 3))
    assert rig.intake.window.candidates == 0


# --- QoS 2 ------------------------------------------------------------------------------------------------------------


def test_an_unreleased_qos_2_id_is_answered_in_its_turn_without_being_produced() -> None:
    rig = Rig.counting()
    rig.lose()
    rig.connect(session_present=True, unreleased={N + 2})
    first, repeated = Message(N + 1, qos=2).again(), Message(N + 2, qos=2).again()
    rig.receive(first)
    rig.receive(repeated)
    assert rig.sink.taken == [first]
    assert rig.connection.acknowledged == []
    rig.sink.confirm()
    assert rig.connection.acknowledged == [first, repeated]
    assert (rig.tally.received, rig.tally.deduplicated) == (1, 1)


def test_after_a_takeover_no_qos_2_id_is_known_any_more() -> None:
    rig = Rig.counting()
    rig.lose()
    unreleased = {N + 5}
    rig.connect(session_present=True, unreleased=unreleased)
    rig.lose(takeover=True)
    assert unreleased == set()


def test_the_same_id_at_qos_1_is_another_message() -> None:
    rig = Rig.counting()
    rig.lose()
    rig.connect(session_present=True, unreleased={N + 5})
    rig.receive(Message(N + 5, qos=1))
    assert rig.sink.taken == [Message(N + 5, qos=1)]


def test_an_id_that_was_released_is_produced() -> None:
    rig = Rig.counting()
    unreleased = {N + 5}
    rig.lose()
    rig.connect(session_present=True, unreleased=unreleased)
    unreleased.clear()
    rig.receive(Message(N + 5, qos=2))
    assert rig.sink.taken == [Message(N + 5, qos=2)]


# --- budget -----------------------------------------------------------------------------------------------------------


def test_reading_stops_over_the_budget_and_goes_on_well_below_it() -> None:
    rig = Rig(budget=100)
    for number in range(11):
        rig.receive(Message(number), size=10)
        assert rig.connection.reading == (number < 10)
    for left in range(10, -1, -1):
        rig.sink.confirm()
        assert rig.connection.reading == (left * 10 <= 75)
    assert rig.connection.switched == 2


def test_what_the_sink_builds_counts_too() -> None:
    rig = Rig(budget=100)
    rig.sink.in_flight_bytes = 95
    rig.receive(Message(1), size=10)
    assert not rig.connection.reading
    assert rig.intake.held == 105


def test_a_message_larger_than_the_budget_is_admitted_alone() -> None:
    rig = Rig(budget=100)
    rig.receive(Message(1), size=5_000)
    assert not rig.connection.reading
    rig.sink.confirm()
    assert rig.connection.reading
    assert rig.connection.acknowledged == [Message(1)]


def test_a_large_message_on_its_way_is_counted_and_waits_until_it_can_be_admitted_alone() -> None:
    rig = Rig(budget=100)
    rig.receive(Message(1), size=50)
    rig.intake.receiving(60)
    assert not rig.connection.reading
    assert rig.intake.held == 110
    rig.sink.confirm()
    assert rig.connection.reading
    rig.intake.receiving(1_000)
    assert rig.connection.reading
    rig.receive(Message(2), size=2_000)
    assert rig.intake.held == 2_000


def test_what_was_on_its_way_is_gone_with_the_connection() -> None:
    rig = Rig()
    rig.intake.receiving(1_000)
    rig.lose()
    assert rig.intake.held == 0


def test_what_is_remembered_for_redeliveries_alone_never_stops_reading() -> None:
    rig = Rig.counting()
    rig.intake.budget = CANDIDATE_BYTES
    messages = [Message(N + number) for number in range(1, 20)]
    rig.receive(*messages)
    rig.lose()
    rig.sink.confirm()
    connection = rig.connect(session_present=True)
    assert rig.intake.held > rig.intake.budget
    assert connection.reading
    rig.receive(Message(N + 1, b"never seen").again())
    assert not connection.reading
    rig.sink.confirm()
    assert connection.reading


def test_a_new_connection_does_not_read_while_the_last_ones_messages_fill_the_budget() -> None:
    rig = Rig(budget=100)
    rig.receive(Message(1), size=200)
    rig.lose()
    connection = rig.connect(session_present=True)
    assert not connection.reading
    rig.sink.confirm()
    assert connection.reading


def test_a_mapping_that_drains_does_not_read_again() -> None:
    rig = Rig(budget=100)
    rig.receive(Message(1))
    rig.intake.close()
    rig.sink.confirm()
    assert not rig.connection.reading
    assert rig.connection.acknowledged == [Message(1)]


# --- what is given up -------------------------------------------------------------------------------------------------


def test_what_was_given_up_is_in_flight_until_it_comes_again_and_is_counted_once() -> None:
    rig = Rig()
    rig.receive(Message(1), Message(2))
    rig.lose()
    rig.give_up()
    assert (rig.tally.received, rig.intake.in_flight, rig.intake.held) == (2, 2, 0)
    rig.new_sink()
    rig.connect(session_present=True)
    rig.receive(Message(1).again(), Message(2).again(), Message(3))
    assert (rig.tally.received, rig.intake.in_flight, rig.intake.owed) == (3, 3, 0)


def test_what_was_given_up_is_dropped_when_the_session_is_lost() -> None:
    rig = Rig()
    rig.receive(Message(1))
    rig.lose()
    rig.give_up()
    rig.new_sink()
    rig.connect(session_present=False)
    assert rig.tally.dropped == {"session_lost": 1}
    assert rig.intake.in_flight == 0


# --- overlapping filters ----------------------------------------------------------------------------------------------

_FILTERS = ["#", "a/#", "+/b", "a/+", "a/b", "+/+", "b/#", "a/b/#"]
_filters = st.lists(st.sampled_from(_FILTERS), min_size=1, max_size=5, unique=True)
_topic = st.sampled_from(["a/b", "a", "a/c", "b/b", "a/b/c", "x/b"])


def _subscribed(filters: list[str], *, identified: bool = True) -> list[Subscription]:
    return [
        Subscription(topic_filter, 1, number if identified else None, granted=1)
        for number, topic_filter in enumerate(filters, start=3)
    ]


@settings(deadline=None)
@given(filters=_filters, topic=_topic, data=st.data())
def test_of_one_copy_per_matching_subscription_exactly_one_is_forwarded(
    filters: list[str], topic: str, data: st.DataObject
) -> None:
    rig = Rig()
    subscriptions = _subscribed(filters)
    rig.intake.copies = CopyFilter(subscriptions)
    matching = [each.identifier for each in subscriptions if matches(each.topic_filter, topic) and each.identifier]
    order = data.draw(st.permutations(matching))
    copies = [Message(number, b"p", topic, subscription_ids=[each]) for number, each in enumerate(order, start=1)]
    cut = data.draw(st.integers(0, len(copies)))
    for read in (copies[:cut], copies[cut:]):
        if read:
            rig.receive(*read)
    assert len(rig.sink.taken) == min(1, len(copies))
    assert rig.tally.received == min(1, len(copies))
    assert rig.tally.deduplicated == max(0, len(copies) - 1)
    while rig.sink.parts:
        rig.sink.confirm()
    assert rig.connection.acknowledged == copies


@settings(deadline=None)
@given(filters=_filters, topic=_topic)
def test_one_copy_with_all_identifiers_is_forwarded(filters: list[str], topic: str) -> None:
    rig = Rig()
    subscriptions = _subscribed(filters)
    rig.intake.copies = CopyFilter(subscriptions)
    identifiers = [each.identifier for each in subscriptions if each.identifier and matches(each.topic_filter, topic)]
    rig.receive(Message(1, b"p", topic, subscription_ids=identifiers))
    assert len(rig.sink.taken) == 1


@settings(deadline=None)
@given(filters=_filters, topic=_topic, copies=st.integers(1, 4), identified=st.booleans())
def test_copies_without_identifiers_are_all_forwarded(
    filters: list[str], topic: str, copies: int, identified: bool
) -> None:
    rig = Rig()
    rig.intake.copies = CopyFilter(_subscribed(filters, identified=identified))
    rig.receive(*[Message(number, b"p", topic) for number in range(copies)])
    assert len(rig.sink.taken) == copies


def test_what_was_given_up_after_the_session_was_lost_is_dropped_because_no_broker_has_it() -> None:
    rig = Rig()
    rig.receive(Message(1))
    rig.lose()
    rig.connect(session_present=False)
    rig.receive(Message(1))
    rig.give_up()
    assert rig.tally.dropped["shutdown"] == 1
    assert (rig.tally.received, rig.intake.in_flight) == (2, 1)


def test_what_was_given_up_of_a_session_the_broker_does_not_keep_is_dropped() -> None:
    rig = Rig()
    rig.lose()
    rig.connect(client_id="")
    rig.receive(Message(1))
    rig.give_up()
    assert rig.tally.dropped["shutdown"] == 1


@pytest.mark.parametrize(("client_id", "dropped"), [("c", 1), ("", 2)])
def test_what_comes_while_draining_and_has_no_copy_in_the_broker_is_received_and_dropped(
    client_id: str, dropped: int
) -> None:
    rig = Rig()
    rig.lose()
    rig.connect(client_id=client_id)
    rig.intake.close()
    rig.receive(Message(1), Message(None, qos=0))
    assert rig.tally.received == rig.tally.dropped["shutdown"] == dropped


# --- everything together ----------------------------------------------------------------------------------------------


class IntakeMachine(RuleBasedStateMachine):
    """A broker that keeps what is not acknowledged, a Kafka that confirms in any order, and faults between them."""

    def __init__(self) -> None:
        super().__init__()
        self.rig = Rig.counting()
        self.kept: list[Message] = []  # sent on the session and not acknowledged, in order
        self.sent = 0  # of them, on this connection
        self.number = N
        self.accepted: list[bytes] = []
        self.delivered: list[bytes] = []
        self.connected = True
        self.running = True

    @initialize(size=st.integers(1, 200))
    def budget(self, size: int) -> None:
        self.rig.intake.budget = size

    def _take_acks(self) -> None:
        for message in self.rig.connection.acknowledged:
            assert message.packet_id == self.kept[0].packet_id  # in receive order, each once
            assert message.payload in self.delivered
            self.kept.pop(0)
            self.sent -= 1
        self.rig.connection.acknowledged.clear()

    @rule(count=st.integers(1, 4))
    def publish(self, count: int) -> None:
        for _ in range(count):
            self.number += 1
            payload = b"%d" % self.number
            self.kept.append(Message(self.number, payload, qos=1 + self.number % 2))
            self.accepted.append(payload)

    @precondition(lambda self: self.connected and self.running and self.rig.connection.reading)
    @rule(count=st.integers(1, 5), size=st.integers(1, 100))
    def read(self, count: int, size: int) -> None:
        messages = self.kept[self.sent : self.sent + count]
        if messages:
            self.sent += len(messages)
            self.rig.receive(*messages, size=size)
            self._take_acks()

    @precondition(lambda self: self.rig.sink.parts and self.running)
    @rule(data=st.data())
    def kafka_confirms(self, data: st.DataObject) -> None:
        index = data.draw(st.integers(0, len(self.rig.sink.parts) - 1))
        self._confirm(index)

    def _confirm(self, index: int) -> None:
        _, messages = self.rig.sink.parts[index]
        self.delivered += [message.payload for message in messages]
        self.rig.tally.delivered += len(messages)
        self.rig.sink.confirm(index)
        self._take_acks()

    @precondition(lambda self: self.connected)
    @rule()
    def broker_says_what_it_processed(self) -> None:
        self.rig.connection.answer()

    @precondition(lambda self: self.connected)
    @rule(takeover=st.booleans(), unread=st.integers(0, 3))
    def lose_connection(self, takeover: bool, unread: int) -> None:
        sent = self.sent + unread  # what the broker wrote into a socket nobody read is a redelivery, too
        self.kept = [message.again() if at < sent else message for at, message in enumerate(self.kept)]
        self.sent = 0
        self.rig.lose(takeover=takeover)
        self.connected = False

    @precondition(lambda self: not self.connected and self.running)
    @rule()
    def resume(self) -> None:
        self.rig.connect(session_present=True)
        self.connected = True

    @precondition(lambda self: not self.connected and self.running)
    @rule()
    def come_back_to_no_session(self) -> None:
        # What the broker held is lost, and what Kafka has not got of it is so by no fault of ours.
        self.accepted = [payload for payload in self.accepted if payload not in {one.payload for one in self.kept}]
        self.kept = []
        self.rig.connect(session_present=False)
        self.connected = True

    @precondition(lambda self: self.connected and self.running)
    @rule()
    def change_numbers(self) -> None:
        """Lose the connection to a broker that numbers afresh."""
        self.lose_connection(takeover=False, unread=1)
        ids = [message.packet_id for message in self.kept]
        self.kept = [
            dataclasses.replace(message, packet_id=packet_id)
            for message, packet_id in zip(self.kept, ids[1:] + ids[:1], strict=True)
        ]

    @precondition(lambda self: self.running)
    @rule()
    def stop(self) -> None:
        self.rig.intake.close()
        self.rig.give_up()
        self._take_acks()
        if self.connected:
            self.lose_connection(takeover=False, unread=0)
        self.rig.sink.parts.clear()
        self.running = False

    @precondition(lambda self: not self.running)
    @rule()
    def start(self) -> None:
        self.rig.new_sink()
        self.running = True

    @invariant()
    def received_is_delivered_dropped_or_in_flight(self) -> None:
        tally = self.rig.tally
        gone = tally.delivered + tally.dead_lettered + sum(tally.dropped.values())
        assert tally.received == gone + self.rig.intake.in_flight

    @invariant()
    def a_reader_that_is_stopped_waits_for_something(self) -> None:
        if self.connected and self.running and not self.rig.connection.reading:
            assert self.rig.sink.parts

    def teardown(self) -> None:
        if not self.running:
            self.start()
        if not self.connected:
            self.resume()
        for _ in range(10_000):
            if not self.kept and not self.rig.sink.parts:
                break
            if self.rig.sink.parts:
                self._confirm(0)
            else:
                assert self.rig.connection.reading
                self.read(3, 50)
        assert not self.kept
        assert set(self.accepted) <= set(self.delivered)
        assert self.rig.intake.window.held == 0
        assert self.rig.intake.window.is_empty
        assert self.rig.connection.reading


TestIntakeKeepsItsPromise: Any = IntakeMachine.TestCase
TestIntakeKeepsItsPromise.settings = settings(deadline=None, max_examples=150, stateful_step_count=40)
