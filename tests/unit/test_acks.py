"""AckWindow, by example and against a naive model that looks at every message anew each time."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from server.core.acks import AckWindow, Arrival, Fingerprint


@dataclass(frozen=True)
class Message:
    """A message as far as the window looks at it."""

    packet_id: int | None
    payload: bytes = b"p"
    topic: str = "t"
    qos: int = 1


def _lost(*messages: Message, takeover: bool = False) -> tuple[AckWindow[Message], Arrival[Message]]:
    """A window whose only arrival was left unconfirmed by a lost connection."""
    window: AckWindow[Message] = AckWindow()
    arrival = window.arrive(messages, 10, 0.0)
    window.connection_lost(takeover=takeover)
    return window, arrival


def test_a_new_window_holds_nothing() -> None:
    window: AckWindow[Message] = AckWindow()
    assert window.is_empty
    assert window.held == 0
    assert window.oldest_pending is None
    assert window.due() == []


def test_an_acknowledgement_that_was_due_and_never_written_can_be_claimed_once() -> None:
    window: AckWindow[Message] = AckWindow()
    window.connection_lost(takeover=False, withheld=[(7, Fingerprint.of(Message(7, qos=2)))])
    assert window.claim(Message(7, b"other", qos=2)) is None
    origin = window.claim(Message(7, qos=2))
    assert origin is not None
    assert not origin.open_parts
    assert window.claim(Message(7, qos=2)) is None
    assert window.is_empty


def test_arrivals_are_due_in_receive_order_whatever_order_they_are_confirmed_in() -> None:
    window: AckWindow[Message] = AckWindow()
    arrivals = [window.arrive([Message(number)], 10, float(number)) for number in range(3)]
    window.confirm(arrivals[2])
    window.confirm(arrivals[1])
    assert window.due() == []
    window.confirm(arrivals[0])
    assert window.due() == arrivals
    assert window.due() == []
    assert window.held == 0


def test_an_arrival_is_due_only_when_its_last_part_is_confirmed() -> None:
    window: AckWindow[Message] = AckWindow()
    arrival = window.arrive([Message(1)], 10, 0.0)
    arrival.open_parts += 2
    window.confirm(arrival)
    window.confirm(arrival)
    assert window.due() == []
    window.confirm(arrival)
    assert window.due() == [arrival]


def test_what_a_lost_connection_left_is_never_due_again() -> None:
    window, arrival = _lost(Message(1))
    window.confirm(arrival)
    assert window.due() == []
    assert window.is_empty


def test_what_a_lost_connection_left_is_held_until_kafka_has_it() -> None:
    window, arrival = _lost(Message(1))
    assert (window.held, window.is_empty, window.oldest_pending) == (10, False, 0.0)
    window.confirm(arrival)
    assert (window.held, window.is_empty, window.oldest_pending) == (0, True, None)


@pytest.mark.parametrize(
    "other",
    [
        Message(2),
        Message(None),
        Message(1, payload=b"q"),
        Message(1, topic="u"),
        Message(1, qos=2),
    ],
)
def test_a_redelivery_that_differs_in_anything_is_not_attached(other: Message) -> None:
    window, _ = _lost(Message(1))
    assert window.claim(other) is None
    assert window.candidates == 1


def test_a_delivery_is_claimed_once() -> None:
    window, arrival = _lost(Message(1))
    assert window.claim(Message(1)) is arrival
    assert window.claim(Message(1)) is None


def test_qos_0_is_never_a_candidate() -> None:
    window, _ = _lost(Message(None, qos=0))
    assert window.candidates == 0


def test_a_confirmed_delivery_whose_acknowledgement_was_not_written_can_be_claimed() -> None:
    window: AckWindow[Message] = AckWindow()
    arrival = window.arrive([Message(1)], 10, 0.0)
    window.confirm(arrival)
    window.connection_lost(takeover=False)
    assert window.held == 0
    assert window.claim(Message(1)) is arrival


def test_an_acknowledged_delivery_can_not_be_claimed() -> None:
    window: AckWindow[Message] = AckWindow()
    window.confirm(window.arrive([Message(1)], 10, 0.0))
    window.due()
    window.connection_lost(takeover=False)
    assert window.claim(Message(1)) is None


def test_after_a_takeover_nothing_can_be_claimed() -> None:
    window, _ = _lost(Message(1), takeover=True)
    assert window.claim(Message(1)) is None


def test_after_the_session_is_lost_nothing_can_be_claimed() -> None:
    window, _ = _lost(Message(1))
    window.forget_candidates()
    assert window.claim(Message(1)) is None


def test_after_giving_up_only_confirmed_deliveries_can_be_claimed_and_nothing_is_held() -> None:
    window: AckWindow[Message] = AckWindow()
    open_message = Message(2)
    done, open_ = window.arrive([Message(1)], 10, 0.0), window.arrive([open_message], 10, 1.0)
    window.confirm(done)
    window.connection_lost(takeover=False)
    window.given_up([(open_, open_message)])
    assert window.is_empty
    assert window.held == 0
    assert window.claim(Message(2)) is None
    assert window.claim(Message(1)) is done
    window.confirm(open_)  # too late, and harmless
    assert window.held == 0


def test_after_giving_up_what_was_confirmed_within_an_arrival_can_be_claimed() -> None:
    messages = [Message(1), Message(2), Message(3)]
    window, arrival = _lost(*messages)
    window.given_up([(arrival, messages[1])])
    assert window.claim(Message(2)) is None
    for confirmed in (1, 3):
        origin = window.claim(Message(confirmed))
        assert origin is not None
        assert not origin.open_parts


def test_after_giving_up_a_redelivery_that_waited_for_another_can_not_be_claimed_again() -> None:
    first, again = Message(1), Message(1)
    window, origin = _lost(first)
    window.claim(again)
    heir = window.arrive([again], 10, 1.0)
    window.inherit(heir, origin)
    window.confirm(heir)
    window.connection_lost(takeover=False)
    window.given_up([(origin, first)])
    assert window.claim(Message(1)) is None


def test_when_nothing_more_is_produced_all_before_the_first_unconfirmed_message_can_be_acknowledged() -> None:
    window: AckWindow[Message] = AckWindow()
    messages = [Message(number) for number in range(1, 10)]
    for start in (0, 3, 6):
        window.arrive(messages[start : start + 3], 10, 0.0)
    assert window.confirmed_prefix([messages[7], messages[4]]) == messages[:4]
    assert window.oldest_packet_id == 5
    window.connection_lost(takeover=False)
    assert sorted(window.candidate_ids) == [5, 6, 7, 8, 9]


def test_what_repeats_something_unconfirmed_is_not_acknowledged() -> None:
    first, again = Message(1), Message(1)
    window, origin = _lost(first)
    window.claim(again)
    before, heir = window.arrive([Message(7)], 10, 1.0), window.arrive([again], 10, 1.0)
    window.inherit(heir, origin)
    window.confirm(heir)
    assert before.open_parts
    assert window.confirmed_prefix([first]) == [Message(7)]


def test_a_redelivery_is_due_as_soon_as_what_it_repeats_is_confirmed() -> None:
    window, origin = _lost(Message(1), Message(2))
    heir = window.arrive([Message(1), Message(2)], 10, 1.0)
    for message in heir.messages:
        claimed = window.claim(message)
        assert claimed is origin
        window.inherit(heir, claimed)
    window.confirm(heir)
    assert window.due() == []
    window.confirm(origin)
    assert window.due() == [heir]
    assert window.held == 0


def test_a_redelivery_of_what_is_confirmed_waits_for_nothing() -> None:
    window, origin = _lost(Message(1))
    window.confirm(origin)
    heir = window.arrive([Message(1)], 10, 1.0)
    window.inherit(heir, origin)
    window.confirm(heir)
    assert window.due() == [heir]


def test_a_chain_of_redeliveries_ends_with_the_first() -> None:
    window, first = _lost(Message(1))
    chain = [first]
    for _ in range(5_000):  # deeper than the interpreter's stack
        arrival = window.arrive([Message(1)], 1, 0.0)
        assert window.claim(Message(1)) is chain[-1]
        window.inherit(arrival, chain[-1])
        window.confirm(arrival)
        chain.append(arrival)
        window.connection_lost(takeover=False)
    window.confirm(first)
    assert window.is_empty
    assert window.held == 0


@dataclass(eq=False)
class Kept:
    """What the model knows of one arrival."""

    real: Arrival[Message]
    messages: list[Message]
    size: int
    at: float
    connection: int
    parts: int
    origins: list[Kept] = field(default_factory=list)
    acked: bool = False
    given_up: bool = False

    @property
    def ready(self) -> bool:
        return self.parts == 0 and all(origin.ready for origin in self.origins)


class AckWindowMachine(RuleBasedStateMachine):
    """Connections come and go, Kafka confirms in any order, redeliveries claim what they can."""

    def __init__(self) -> None:
        super().__init__()
        self.window: AckWindow[Message] = AckWindow()
        self.kept: list[Kept] = []
        self.left: list[tuple[Kept, Message]] = []  # deliveries of lost connections, since they were last forgotten
        self.claimed: list[tuple[Kept, Message]] = []
        self.connection = 0
        self.connected = False
        self.clock = 0.0

    def _released(self, one: Kept) -> bool:
        lost = one.connection != self.connection or not self.connected
        return one.acked or one.given_up or (lost and one.ready)

    def _in_use(self) -> set[int | None]:
        here = [one for one in self.kept if one.connection == self.connection and not one.acked]
        return {message.packet_id for one in here for message in one.messages}

    def _claimable(self, message: Message) -> Kept | None:
        same_id = [pair for pair in self.left if pair[1].packet_id == message.packet_id]
        if message.packet_id is None or not same_id:
            return None
        one, delivered = same_id[-1]
        taken = any(pair[0] is one and pair[1] is delivered for pair in self.claimed)
        gone = one.given_up and not one.ready
        return None if taken or gone or delivered != message else one

    @initialize()
    def connect_first(self) -> None:
        self.connected = True

    @precondition(lambda self: self.connected)
    @rule(
        data=st.data(),
        parts=st.integers(1, 3),
        size=st.integers(0, 9),
        fresh=st.lists(
            st.builds(
                Message,
                st.sampled_from([None, 1, 2, 3, 4]),
                st.sampled_from([b"a", b"b"]),
                st.sampled_from("tu"),
                st.sampled_from([1, 2]),
            ),
            max_size=3,
        ),
    )
    def arrive(self, data: st.DataObject, parts: int, size: int, fresh: list[Message]) -> None:
        again = data.draw(st.lists(st.sampled_from(self.left), max_size=3)) if self.left else []
        messages: list[Message] = []
        used = self._in_use()
        for message in [delivered for _, delivered in again] + fresh:
            # An equal message of its own: what is claimed must not depend on identity.
            copy = Message(message.packet_id, message.payload, message.topic, message.qos)
            if copy.packet_id is None or copy.packet_id not in used:
                messages.append(copy)
                used.add(copy.packet_id)
        self.clock += 1.0
        real = self.window.arrive(messages, size, self.clock)
        one = Kept(real, messages, size, self.clock, self.connection, parts)
        for message in messages:
            expected = self._claimable(message)
            found = self.window.claim(message)
            assert found is (expected.real if expected else None)
            if expected is not None and found is not None:
                self.claimed.append(
                    next(pair for pair in reversed(self.left) if pair[1].packet_id == message.packet_id)
                )
                self.window.inherit(real, found)
                one.origins.append(expected)
        real.open_parts += parts
        self.window.confirm(real)  # the caller's own hold
        self.kept.append(one)

    @precondition(lambda self: any(one.parts and not one.given_up for one in self.kept))
    @rule(data=st.data())
    def kafka_confirms(self, data: st.DataObject) -> None:
        one = data.draw(st.sampled_from([one for one in self.kept if one.parts and not one.given_up]))
        one.parts -= 1
        self.window.confirm(one.real)

    @precondition(lambda self: self.connected)
    @rule()
    def acknowledge(self) -> None:
        expected: list[Kept] = []
        for one in self.kept:
            if one.connection != self.connection or one.acked:
                continue
            if not one.ready:
                break
            expected.append(one)
        due = self.window.due()
        assert [arrival.at for arrival in due] == [one.at for one in expected]
        assert [list(arrival.messages) for arrival in due] == [one.messages for one in expected]
        for one in expected:
            one.acked = True

    @precondition(lambda self: self.connected)
    @rule(takeover=st.booleans())
    def lose_connection(self, takeover: bool) -> None:
        self.window.connection_lost(takeover=takeover)
        for one in self.kept:
            if one.connection == self.connection and not one.acked:
                self.left += [(one, message) for message in one.messages if message.packet_id is not None]
        self.connected = False
        if takeover:
            self.left.clear()
        assert self.window.due() == []

    @precondition(lambda self: not self.connected)
    @rule(session_present=st.booleans())
    def connect(self, session_present: bool) -> None:
        self.connection += 1
        self.connected = True
        if not session_present:
            self.window.forget_candidates()
            self.left.clear()

    @precondition(lambda self: not self.connected)
    @rule()
    def give_up(self) -> None:
        waiting = [one for one in self.kept if not one.ready]
        self.window.given_up([(one.real, message) for one in waiting for message in one.messages])
        for one in self.kept:
            one.given_up = one.given_up or not self._released(one)

    @invariant()
    def what_is_held_is_what_is_not_released(self) -> None:
        assert self.window.held == sum(one.size for one in self.kept if not self._released(one))

    @invariant()
    def it_is_empty_when_nothing_waits(self) -> None:
        assert self.window.is_empty == all(self._released(one) for one in self.kept)

    @invariant()
    def the_oldest_pending_is_the_oldest_that_waits_for_kafka(self) -> None:
        waiting = [one.at for one in self.kept if not one.ready and not one.given_up]
        assert self.window.oldest_pending == min(waiting, default=None)

    @invariant()
    def as_many_can_be_claimed_as_the_model_says(self) -> None:
        last = {message.packet_id: message for _, message in self.left}
        assert self.window.candidates == sum(1 for message in last.values() if self._claimable(message))

    def teardown(self) -> None:
        for one in self.kept:
            while one.parts and not one.given_up:
                one.parts -= 1
                self.window.confirm(one.real)
        self.window.due() if self.connected else None
        assert self.window.held == 0
        assert self.window.is_empty
        super().teardown()


TestAckWindowAgainstTheModel: Any = AckWindowMachine.TestCase
TestAckWindowAgainstTheModel.settings = settings(deadline=None, max_examples=150, stateful_step_count=40)
