"""A Kafka topic: who waits for its partitions, and in which order records go on."""

from __future__ import annotations

import zlib
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from server.core.acks import Arrival
from server.core.record import Route
from server.kafka.lanes import Chunk, Flight
from server.kafka.topic import LEARNT_LIMIT_SECONDS, Topic


@dataclass(frozen=True)
class Message:
    """A message as far as a lane looks at it."""

    topic: str
    payload: bytes
    qos: int = 1
    packet_id: int | None = 1


def _place(key: bytes, partitions: int) -> int:
    return zlib.crc32(key) % partitions


def _entry(key: str, number: int) -> tuple[Route, Message]:
    name = key.encode()
    return Route(key, name, name, [], None), Message(key, b"%d" % number)


def _chunk(arrival: Arrival[Any], records: list[tuple[Route, Message]], number: int) -> Chunk:
    return Chunk(arrival, [route for route, _ in records], [message for _, message in records], number)


def _arrival() -> Arrival[Any]:
    return Arrival((), 0, 0.0)


def _waiting(topic: Topic, *keys: str, number: int = 1) -> Chunk:
    arrival = _arrival()
    arrival.open_parts += 1
    chunk = _chunk(arrival, [_entry(key, index) for index, key in enumerate(keys)], number)
    topic.waiting.append(chunk)
    return chunk


def _enqueue(topic: Topic) -> None:
    for lane, chunk in topic.place_waiting():
        lane.queue.append(chunk)


def test_a_topic_without_partitions_takes_nothing() -> None:
    topic = Topic("t", _place)
    assert not topic.accepts
    assert not topic.follow(0)
    assert not topic.accepts


def test_what_waited_is_placed_once_the_partitions_are_known() -> None:
    topic = Topic("t", _place)
    chunk = _waiting(topic, "a", "b", "c", "a")
    assert topic.queued() == [chunk]
    assert topic.follow(3)
    assert topic.accepts
    placed = topic.place_waiting()
    assert topic.waiting == []
    assert sum(len(part.messages) for _, part in placed) == 4
    assert chunk.arrival.open_parts == 1 + len(placed)
    for lane, part in placed:
        assert {_place(route.placement, 3) for route in part.routes} == {lane.partition}
        assert part.number == chunk.number


def test_only_what_is_left_of_a_chunk_is_placed_and_a_dead_letter_stays_one() -> None:
    topic = Topic("t", _place, partitions=1, visible=1)
    chunk = _waiting(topic, "a", "b", "c")
    chunk.start = chunk.done = 1
    chunk.dead_letter = True
    [(_, part)] = topic.place_waiting()
    assert [route.topic for route in part.routes] == ["b", "c"]
    assert part.dead_letter


def test_one_lane_serves_a_partition() -> None:
    topic = Topic("t", _place, partitions=1, visible=1)
    assert topic.lane(_entry("a", 0)[0]) is topic.lane(_entry("b", 0)[0])


def test_only_what_is_placed_and_not_in_flight_is_queued() -> None:
    topic = Topic("t", _place, partitions=1, visible=1)
    chunk = _waiting(topic, "a", "b", "c")
    assert topic.queued_records == 0
    _enqueue(topic)
    assert topic.queued_records == 3
    topic.lanes[0].queue[0].start = 2
    assert topic.queued_records == 1
    assert len(topic.queued()) == 1
    assert chunk.start == 0


def test_a_topic_that_grows_waits_until_its_lanes_have_run_dry() -> None:
    topic = Topic("t", _place, partitions=1, visible=1)
    chunk = _waiting(topic, "a", "b")
    _enqueue(topic)
    lane = topic.lanes[0]
    assert not topic.follow(2)
    assert not topic.accepts
    queued = lane.queue.popleft()
    lane.flight = Flight(lane, [(queued, 0, 2)], 2, 0, 0.0, None)
    assert not topic.follow(2)
    lane.flight = None
    assert topic.follow(2)
    assert topic.accepts
    assert topic.lanes == {}
    assert chunk.arrival.open_parts == 2


def test_a_topic_that_shrinks_waits_for_what_is_in_flight_only() -> None:
    topic = Topic("t", _place, partitions=4, visible=4)
    _waiting(topic, "a", "b", "c", "d")
    _enqueue(topic)
    lane = next(iter(topic.lanes.values()))
    lane.flight = Flight(lane, [], 0, 0, 0.0, None)
    assert not topic.follow(1)
    assert not topic.accepts
    lane.flight = None
    assert topic.follow(1)


def test_lanes_of_a_topic_that_shrank_hold_nothing_more() -> None:
    # The sink may remember such a lane as ready: what it sent from there would go out twice.
    topic = Topic("t", _place, partitions=4, visible=4)
    _waiting(topic, "a", "b", "c", "d")
    _enqueue(topic)
    before = list(topic.lanes.values())
    assert topic.follow(1)
    _enqueue(topic)
    assert all(not lane.queue for lane in before)


def test_what_came_while_a_topic_was_out_of_sight_is_placed_when_it_is_back_as_it_was() -> None:
    # A new producer does not know the topic's partitions at first, so this is every recovery.
    topic = Topic("t", _place, partitions=3, visible=3)
    assert not topic.follow(0)
    assert not topic.accepts
    _waiting(topic, "a")
    assert topic.follow(3)
    assert len(topic.place_waiting()) == 1
    assert not topic.follow(3)


def test_what_is_queued_keeps_its_lanes_while_a_topic_is_out_of_sight() -> None:
    topic = Topic("t", _place, partitions=3, visible=3)
    _waiting(topic, "a", number=1)
    _enqueue(topic)
    topic.follow(0)
    _waiting(topic, "a", number=2)
    assert topic.follow(3)
    _enqueue(topic)
    [lane] = topic.lanes.values()
    assert [chunk.number for chunk in lane.queue] == [1, 2]


class OneByOne:
    """A sink that sends single records, always from the fullest lane, so that lanes get out of step."""

    def __init__(self) -> None:
        self.topic = Topic("t", _place)
        self.written: dict[str, list[bytes]] = defaultdict(list)
        self.expected: dict[str, list[bytes]] = defaultdict(list)
        self.arrivals: list[Arrival[Any]] = []
        self.records = 0

    def follow(self, count: int) -> None:
        if self.topic.follow(count):
            _enqueue(self.topic)

    def add(self, keys: list[str]) -> None:
        arrival = _arrival()
        self.arrivals.append(arrival)
        groups: dict[int | None, list[Any]] = defaultdict(list)
        for key in keys:
            self.records += 1
            entry = _entry(key, self.records)
            self.expected[key].append(entry[1].payload)
            groups[self.topic.lane(entry[0]).partition if self.topic.accepts else None].append(entry)
        for partition, entries in groups.items():
            arrival.open_parts += 1
            queue = self.topic.waiting if partition is None else self.topic.lanes[partition].queue
            queue.append(_chunk(arrival, entries, len(self.arrivals)))

    def send(self) -> bool:
        lane = max(self.topic.lanes.values(), key=lambda lane: len(lane.queue), default=None)
        if lane is None or not lane.queue:
            return False
        chunk = lane.queue[0]
        route, message = chunk.routes[chunk.start], chunk.messages[chunk.start]
        self.written[route.topic].append(message.payload)
        chunk.start += 1
        chunk.done += 1
        if chunk.done == len(chunk.messages):
            chunk.arrival.open_parts -= 1
            lane.queue.popleft()
        return True


@settings(deadline=None, max_examples=300)
@given(
    turns=st.lists(
        st.one_of(st.integers(0, 5), st.lists(st.sampled_from("abcdef"), min_size=1, max_size=5), st.none()),
        max_size=25,
    ),
)
def test_every_record_goes_out_once_and_in_order_per_key_whatever_the_partitions_do(
    turns: list[int | list[str] | None],
) -> None:
    sink = OneByOne()
    for turn in turns:
        if turn is None:
            sink.send()
        elif isinstance(turn, int):
            sink.follow(turn)
        else:
            sink.add(turn)
    while sink.send():
        pass
    sink.follow(3)
    while sink.send():
        pass
    assert sink.topic.queued() == []
    assert sink.written == sink.expected
    assert all(arrival.open_parts == 1 for arrival in sink.arrivals)


def test_a_refused_size_is_the_limit_for_a_while() -> None:
    topic = Topic("t", _place)
    assert topic.limit(1_000, 0.0) == 1_000
    topic.learn_limit(500, 0.0)
    assert topic.limit(1_000, 1.0) == 499
    assert topic.limit(400, 1.0) == 400
    assert topic.limit(1_000, LEARNT_LIMIT_SECONDS) == 499
    assert topic.limit(1_000, LEARNT_LIMIT_SECONDS + 0.1) == 1_000
    assert topic.limit(1_000, LEARNT_LIMIT_SECONDS) == 1_000
