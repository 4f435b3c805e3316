"""Numbering: no broker is believed that has not shown it counts, and none that numbers otherwise ever is."""

from __future__ import annotations

import itertools
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.core.numbering import ENOUGH, IDS, SETTLE_EVERY, Numbering

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence


class Message(NamedTuple):
    """A message; only its packet id matters here."""

    packet_id: int | None
    topic: str = ""
    payload: bytes = b""
    qos: int = 1


def ids(first: int, count: int) -> list[int]:
    """Packet ids as they are counted up."""
    return [(first - 1 + n) % IDS + 1 for n in range(count)]


def under(*packet_ids: int | None) -> list[Message]:
    """Messages under these ids."""
    return [Message(packet_id) for packet_id in packet_ids]


def shown(first: int = 1, more: int = ENOUGH) -> Numbering:
    """One message came, was acknowledged and settled, and then so many more that wait."""
    numbering = Numbering()
    numbering.connected(resumed=False)
    numbering.arrived(under(first))
    assert numbering.acknowledged(1)
    numbering.settled(numbering.mark(None))
    numbering.arrived(under(*ids(first + 1, more)))
    return numbering


def again(numbering: Numbering, unacknowledged: Iterable[int]) -> Numbering:
    """The connection is lost, and the session resumed."""
    numbering.lost(unacknowledged)
    numbering.connected(resumed=True)
    return numbering


def test_nothing_is_believed_before_the_broker_has_shown_that_it_counts() -> None:
    numbering = shown(more=ENOUGH - 1)
    assert not numbering.is_shown
    assert not again(numbering, [5, 6]).opened_by(5, duplicate=True)


def test_counting_on_shows_nothing_while_no_id_is_known_to_be_free() -> None:
    numbering = Numbering()
    numbering.connected(resumed=False)
    numbering.arrived(under(*ids(1, 1000)))
    assert not numbering.is_shown
    numbering.settled(numbering.mark(1))  # the oldest of all is not acknowledged
    numbering.arrived(under(*ids(1001, 1000)))
    assert not numbering.is_shown


def test_a_replay_that_begins_with_the_oldest_unacknowledged_message_is_believed() -> None:
    assert again(shown(), ids(10, 56)).opened_by(10, duplicate=True)


def test_without_a_word_of_how_the_last_connection_ended_nothing_is_believed() -> None:
    numbering = shown()
    numbering.connected(resumed=True)
    assert not numbering.opened_by(10, duplicate=True)


def test_a_replay_may_begin_with_what_was_acknowledged_and_not_seen_so_by_the_broker() -> None:
    assert again(shown(), ids(10, 56)).opened_by(2, duplicate=True)


@pytest.mark.parametrize("first", [1, 11, 66, 500, IDS])
def test_a_replay_that_begins_elsewhere_is_not_believed_and_the_broker_has_to_show_again(first: int) -> None:
    numbering = again(shown(), ids(10, 56))
    assert not numbering.opened_by(first, duplicate=True)
    assert not numbering.is_shown


def test_a_replay_that_begins_with_1_is_not_believed_even_where_1_is_next() -> None:
    numbering = shown(first=IDS - ENOUGH)  # the newest is 65535
    assert not again(numbering, []).opened_by(1, duplicate=True)


def test_a_new_message_must_follow_the_newest() -> None:
    assert again(shown(), []).opened_by(ENOUGH + 2, duplicate=False)
    assert not again(shown(), []).opened_by(ENOUGH + 3, duplicate=False)


def test_what_was_sent_and_never_arrived_comes_as_redelivery_behind_the_newest() -> None:
    numbering = again(shown(), [])
    assert numbering.opened_by(ENOUGH + 2, duplicate=True)
    numbering.redelivered(ENOUGH + 2)
    numbering.arrived(under(ENOUGH + 3))
    assert numbering.is_shown


def test_ids_that_wrap_around_are_followed() -> None:
    numbering = shown(first=65_500)
    assert again(numbering, [65_530, 5]).opened_by(65_530, duplicate=True)


def test_once_shown_the_last_id_of_a_read_is_enough() -> None:
    numbering = shown()
    newest = ENOUGH + 1
    for _ in range(2 * IDS // 1_000 + 1):
        newest += 1_000
        numbering.arrived(under(*[None] * 999, newest % IDS))
    numbering.arrived(under(None))
    numbering.arrived(under(*ids(newest % IDS + 1, 5)))
    assert numbering.is_shown
    last = [(newest + more) % IDS for more in (3, 4, 5)]
    numbering.settled(numbering.mark(last[0]))
    assert again(numbering, last).opened_by(last[0], duplicate=True)


def test_ids_that_fall_back_later_are_noticed() -> None:
    """A broker whose PINGRESP overtakes our acknowledgements looks as if it counted, as long as it has a backlog."""
    numbering = shown()
    numbering.arrived(under(3, 4))
    assert not numbering.is_shown


@pytest.mark.parametrize("more", [1, 100, 5_000])
def test_a_broker_restarted_from_an_older_state_has_to_show_again_and_can(more: int) -> None:
    """Mosquitto's database had our redeliveries, but not that the messages behind them had been sent: ids fall back."""
    numbering = shown(first=100, more=ENOUGH + more)
    again(numbering, [])
    assert numbering.opened_by(101, duplicate=True)
    numbering.redelivered(101)
    numbering.arrived(under(102))
    assert not numbering.is_shown
    assert numbering.acknowledged(1)
    numbering.settled(numbering.mark(None))
    numbering.arrived(under(*ids(103, ENOUGH)))
    assert numbering.is_shown
    assert again(numbering, ids(103, ENOUGH)).opened_by(103, duplicate=True)


def test_a_broker_that_uses_an_id_again_is_never_believed_in_this_session() -> None:
    numbering = Numbering()
    numbering.connected(resumed=False)
    numbering.arrived(under(1, 2, 1))
    again(numbering, [])
    numbering.arrived(under(*ids(2, 500)))
    numbering.settled(numbering.mark(None))
    numbering.arrived(under(*ids(502, 500)))
    assert not numbering.is_shown
    assert not numbering.acknowledged(1000)
    numbering.connected(resumed=False)
    numbering.arrived(under(1))
    assert numbering.acknowledged(1)


def test_after_a_replay_that_ends_early_the_broker_can_show_again_that_it_counts() -> None:
    """What was acknowledged in another order (QoS 2 between QoS 1) is not replayed, nor what had expired."""
    numbering = again(shown(more=5), [2, 3])
    assert not numbering.opened_by(2, duplicate=True)
    numbering.redelivered(2)
    numbering.redelivered(4)
    numbering.arrived(under(7))
    assert numbering.acknowledged(1)
    numbering.settled(numbering.mark(None))
    numbering.arrived(under(*ids(8, ENOUGH)))
    assert numbering.is_shown


def test_the_broker_is_asked_after_the_first_acknowledgement_and_then_seldom() -> None:
    numbering = Numbering()
    numbering.connected(resumed=False)
    assert not numbering.acknowledged(1)  # nothing with an id came
    numbering.arrived(under(*ids(1, 100)))
    assert numbering.acknowledged(1)
    assert not numbering.acknowledged(SETTLE_EVERY)  # its answer is awaited
    numbering.settled(numbering.mark(50))
    assert not numbering.acknowledged(SETTLE_EVERY - SETTLE_EVERY - 1)
    assert numbering.acknowledged(SETTLE_EVERY)


def test_an_answer_that_was_lost_with_the_connection_is_asked_for_again() -> None:
    numbering = Numbering()
    numbering.connected(resumed=False)
    numbering.arrived(under(*ids(1, 100)))
    assert numbering.acknowledged(1)
    again(numbering, [])
    numbering.arrived(under(101))
    assert numbering.acknowledged(1)


@dataclass
class Broker:
    """A session in a broker: who has which message under which id."""

    number_by: str  # count, smallest, afresh
    window: int
    queued: deque[int] = field(default_factory=deque)
    in_flight: dict[int, int] = field(default_factory=dict)  # id -> message, in the order sent
    last: int = 0
    sent: int = 0

    def next_id(self) -> int:
        if self.number_by == "smallest":
            return next(n for n in itertools.count(1) if n not in self.in_flight)
        self.last = self.last % IDS + 1
        return self.last

    def send(self) -> list[tuple[int, int]]:
        out = []
        while self.queued and len(self.in_flight) < self.window:
            packet_id = self.next_id()
            self.in_flight[packet_id] = self.queued.popleft()
            out.append((packet_id, self.in_flight[packet_id]))
        return out

    def replay(self) -> list[tuple[int, int]]:
        if self.number_by == "afresh":
            messages, self.in_flight, self.last = list(self.in_flight.values()), {}, 0
            for message in messages:
                self.in_flight[self.next_id()] = message
        return list(self.in_flight.items())

    def process(self, count: int) -> None:
        for packet_id in list(self.in_flight)[:count]:
            del self.in_flight[packet_id]

    def publish(self, count: int, fresh: Iterator[int]) -> None:
        self.queued.extend(itertools.islice(fresh, count))


@dataclass
class Client:
    """Our side of the session; `candidates` are the messages that were never acknowledged, by their ids."""

    broker: Broker
    numbering: Numbering = field(default_factory=Numbering)
    candidates: dict[int, int] = field(default_factory=dict)
    unacknowledged: deque[tuple[int, int]] = field(default_factory=deque)

    def receive(self, messages: Sequence[tuple[int, int]]) -> None:
        if messages:
            self.candidates.clear()  # the replay is over
            self.numbering.arrived(under(*(packet_id for packet_id, _ in messages)))
            self.unacknowledged += messages

    def acknowledge(self, count: int, processed: int) -> None:
        """The broker processes the first of them; the others are lost with the connection."""
        for _ in range(count):
            self.unacknowledged.popleft()
        asks = self.numbering.acknowledged(count) if count else False
        mark = self.numbering.mark(self.unacknowledged[0][0] if self.unacknowledged else None)
        self.broker.process(processed)
        if asks and processed == count:
            self.numbering.settled(mark)

    def lose_connection(self) -> None:
        self.candidates.update(self.unacknowledged)
        self.unacknowledged.clear()
        self.numbering.lost(self.candidates)

    def resume(self) -> int:
        """How many redeliveries are taken for an earlier delivery; each must be what it is taken for."""
        self.numbering.connected(resumed=True)
        believed = 0
        for number, (packet_id, message) in enumerate(self.broker.replay()):
            if number == 0 and not self.numbering.opened_by(packet_id, duplicate=True):
                self.candidates.clear()
            self.numbering.redelivered(packet_id)
            if packet_id in self.candidates:
                assert self.candidates.pop(packet_id) == message
                believed += 1
            else:
                self.unacknowledged.append((packet_id, message))
        return believed


def believed_by(broker: Broker, data: st.DataObject) -> int:
    """How many redeliveries are believed in a random life of the session, in which others may hold it too."""
    client = Client(broker)
    client.numbering.connected(resumed=False)
    fresh = itertools.count()
    believed = 0
    for _ in range(data.draw(st.integers(1, 3), "connections")):
        for _ in range(data.draw(st.sampled_from([0, 10, ENOUGH + 2]), "messages acknowledged in peace")):
            broker.publish(1, fresh)
            client.receive(broker.send())
            client.acknowledge(len(client.unacknowledged), len(broker.in_flight))
        broker.publish(data.draw(st.integers(0, 60), "published"), fresh)
        sent = broker.send()
        client.receive(sent[: data.draw(st.integers(0, len(sent)), "arrived")])
        acknowledged = data.draw(st.integers(0, len(client.unacknowledged)), "acknowledged")
        client.acknowledge(acknowledged, data.draw(st.integers(0, acknowledged), "of these processed"))
        client.lose_connection()
        if data.draw(st.booleans(), "somebody held it in between"):
            broker.replay()
            broker.process(data.draw(st.integers(0, len(broker.in_flight)), "acknowledged by them"))
            broker.publish(data.draw(st.integers(0, 60), "published to them"), fresh)
            broker.send()
        believed += client.resume()
    return believed


@pytest.mark.parametrize("number_by", ["smallest", "afresh"])
@given(window=st.sampled_from([1, 20, 50, 1000]), data=st.data())
def test_of_a_broker_that_numbers_otherwise_nothing_is_believed(
    number_by: str, window: int, data: st.DataObject
) -> None:
    assert not believed_by(Broker(number_by, window), data)


@given(window=st.sampled_from([1, 20, 1000]), data=st.data())
def test_what_is_believed_of_a_broker_that_counts_is_true_whoever_held_the_session_in_between(
    window: int, data: st.DataObject
) -> None:
    believed_by(Broker("count", window), data)


def test_of_a_broker_that_counts_every_unacknowledged_message_is_recognised() -> None:
    broker, fresh = Broker("count", 1000), itertools.count()
    client = Client(broker)
    client.numbering.connected(resumed=False)
    for _ in range(5):
        for _ in range(ENOUGH + 2):
            broker.publish(1, fresh)
            client.receive(broker.send())
            client.acknowledge(1, 1)
        broker.publish(50, fresh)
        client.receive(broker.send()[:40])
        client.acknowledge(20, 7)
        client.lose_connection()
        assert client.resume() == 20
        broker.process(50 - 7)
        client.unacknowledged.clear()
