"""Lanes, with aiokafka's own batches: order, take-backs, records that are too large, and the search for poison."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from typing import Any

import pytest
from aiokafka.record.default_records import DefaultRecordBatch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

from server.core.acks import Arrival
from server.core.mapping import Mapping
from server.core.record import Route, compile_record, size_of
from server.kafka.batch import RecordBatch
from server.kafka.lanes import Chunk, Flight, Lane, build, oversized

_NO_LIMIT = 100_000_000


@dataclass(frozen=True)
class Message:
    """A message as far as a lane looks at it."""

    payload: bytes
    topic: str = "a/b"
    qos: int = 1
    packet_id: int | None = 1


_ROUTE = Route("a/b", b"a/b", b"a/b", [], None)


def _batch(size: int = 1_000_000) -> RecordBatch:
    return RecordBatch(size, 0)


def _chunk(*payloads: bytes, number: int = 1, route: Route = _ROUTE) -> Chunk:
    return Chunk(Arrival((), 0, 0.0), [route] * len(payloads), [Message(payload) for payload in payloads], number)


def _lane(*chunks: Chunk) -> Lane:
    return Lane("t", 0, deque(chunks))


def _records(flight: Flight) -> list[Any]:
    return list(DefaultRecordBatch(bytes(flight.batch._build())))


def _values(flight: Flight) -> list[bytes]:
    return [record.value for record in _records(flight)]


def test_an_empty_lane_gives_no_flight() -> None:
    assert build(_lane(), _batch(), limit=_NO_LIMIT, now=0.0) == (None, None)


def test_a_flight_knows_what_it_holds() -> None:
    first, second = _chunk(b"1", b"2"), _chunk(b"3", number=2)
    lane = _lane(first, second)
    flight, poison = build(lane, _batch(), limit=_NO_LIMIT, now=7.0)
    assert flight is not None
    assert poison is None
    assert (flight.records, flight.sent_at, flight.pieces) == (3, 7.0, [(first, 0, 2), (second, 0, 1)])
    assert flight.first() == (first, 0)
    assert flight.size == flight.batch.size()
    assert _values(flight) == [b"1", b"2", b"3"]
    assert not lane.queue


def test_a_batch_takes_what_fits_and_leaves_the_rest() -> None:
    chunk = _chunk(*[b"x" * 100] * 10)
    lane = _lane(chunk)
    flight, _ = build(lane, _batch(500), limit=_NO_LIMIT, now=0.0)
    assert flight is not None
    assert 0 < flight.records < 10
    assert chunk.start == flight.records
    assert list(lane.queue) == [chunk]


def test_a_record_larger_than_a_batch_goes_alone() -> None:
    lane = _lane(_chunk(b"x" * 5_000, b"y"))
    flight, poison = build(lane, _batch(500), limit=_NO_LIMIT, now=0.0)
    assert flight is not None
    assert poison is None
    assert _values(flight) == [b"x" * 5_000]


def test_keys_headers_and_envelopes_arrive_in_the_record() -> None:
    headers = [("h", b"1"), ("empty", b"")]
    plain = _chunk(b"p", route=Route("a", None, b"a", headers, None))
    wrapped = _chunk(b"p", route=Route("a", b"", b"", [], b'{"topic":"a","payload":"'))
    flight, _ = build(_lane(plain, wrapped), _batch(), limit=_NO_LIMIT, now=0.0)
    assert flight is not None
    one, two = _records(flight)
    assert (one.key, one.value, list(one.headers)) == (None, b"p", headers)
    assert (two.key, two.value, list(two.headers)) == (b"", b'{"topic":"a","payload":"cA=="}', [])


def test_a_record_over_the_limit_is_reported_when_it_stands_in_front() -> None:
    chunk = _chunk(b"x" * 1_000, b"y")
    flight, poison = build(_lane(chunk), _batch(), limit=500, now=0.0)
    assert flight is None
    assert poison == (chunk, 0, size_of(b"a/b", 1_000, ()))
    assert chunk.start == 0


def test_a_payload_that_is_too_large_anyway_is_not_wrapped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 256 MB from a broker the envelope would make 700 more, for a record that nobody will send."""
    monkeypatch.setattr(Route, "value", lambda *_: pytest.fail("it was made"))
    route = Route("a", b"a", b"a", [], b'{"topic":"a","payload":"')
    chunk = _chunk(b"x" * 1_000, route=route)
    flight, poison = build(_lane(chunk), _batch(), limit=1_000, now=0.0)
    assert flight is None
    assert poison == (chunk, 0, size_of(b"a", len(route.envelope or b"") + 1_336 + 2, ()))


def test_what_stands_before_a_record_over_the_limit_goes_first() -> None:
    before, chunk = _chunk(b"0"), _chunk(b"1", b"x" * 1_000, b"2", number=2)
    lane = _lane(before, chunk)
    flight, poison = build(lane, _batch(), limit=500, now=0.0)
    assert flight is not None
    assert _values(flight) == [b"0", b"1"]
    assert poison is not None
    assert poison[:2] == (chunk, 1)
    assert lane.queue[0] is chunk
    assert chunk.start == 1


@pytest.mark.parametrize("size", [1, 1_000, 300_000])
def test_a_record_exactly_as_large_as_the_limit_is_sent(size: int) -> None:
    value = b"x" * size
    exactly = size_of(_ROUTE.key, len(value), _ROUTE.headers)
    assert oversized(_ROUTE, value, exactly) is None
    assert oversized(_ROUTE, value, exactly - 1) == exactly


def test_a_small_record_is_not_measured_against_a_large_limit() -> None:
    assert oversized(_ROUTE, b"x", _NO_LIMIT) is None


@pytest.mark.parametrize("topic", ["a", "\x01" * 65_535], ids=["short", "six times as long in JSON"])
@pytest.mark.parametrize("size", [1_000, 300_000, 3_000_000])
def test_a_wrapped_record_exactly_as_large_as_the_limit_is_sent_and_a_larger_one_is_not(topic: str, size: int) -> None:
    mapping = Mapping.model_validate(
        {"name": "m", "mqtt": {"topic": "#"}, "kafka": {"topic": "k"}, "wrap_as_json": True}
    )
    route = compile_record(mapping).route(topic)
    payload = b"x" * size
    exactly = size_of(route.key, len(route.value(payload)), route.headers)
    flight, poison = build(_lane(_chunk(payload, route=route)), _batch(exactly), limit=exactly, now=0.0)
    assert flight is not None
    assert poison is None
    chunk = _chunk(payload, route=route)
    assert build(_lane(chunk), _batch(exactly), limit=exactly - 1, now=0.0) == (None, (chunk, 0, exactly))


@settings(deadline=None)
@given(
    key=st.none() | st.binary(max_size=300),
    value=st.binary(max_size=300),
    headers=st.lists(st.tuples(st.text(max_size=20), st.binary(max_size=200)), max_size=5),
)
def test_no_record_is_larger_than_it_was_said_to_be(
    key: bytes | None, value: bytes, headers: list[tuple[str, bytes]]
) -> None:
    flight, _ = build(_lane(_chunk(value, route=Route("a", key, b"", headers, None))), _batch(), limit=10**9, now=0.0)
    assert flight is not None
    assert len(flight.batch._build()) <= size_of(key, len(value), headers)


def test_taking_back_nothing_changes_nothing() -> None:
    chunk = _chunk(b"1")
    lane = _lane(chunk)
    lane.take_back()
    assert list(lane.queue) == [chunk]


def test_a_chunk_that_is_partly_in_flight_is_taken_back_as_one() -> None:
    first, second = _chunk(b"1"), _chunk(b"2", b"3", number=2)
    lane = _lane(first, second)
    lane.most_records = 2
    lane.flight, _ = build(lane, _batch(), limit=_NO_LIMIT, now=0.0)
    assert second.start == 1
    lane.take_back()
    assert list(lane.queue) == [first, second]
    assert (first.start, second.start, lane.flight) == (0, 0, None)


class LaneMachine(RuleBasedStateMachine):
    """Chunks come, batches go, are confirmed or taken back; records over the limit are removed when reported."""

    LIMIT = 400

    def __init__(self) -> None:
        super().__init__()
        self.lane = _lane()
        self.expected: list[bytes] = []  # not confirmed yet, in order
        self.number = 0

    @rule(sizes=st.lists(st.sampled_from([0, 10, 100, 200, 1_000]), min_size=1, max_size=6))
    def arrive(self, sizes: list[int]) -> None:
        payloads = []
        for size in sizes:
            self.number += 1
            payloads.append(b"%d:" % self.number + b"x" * size)
        self.lane.queue.append(_chunk(*payloads, number=self.number))
        self.expected += payloads

    @precondition(lambda self: self.lane.flight is None)
    @rule(batch_size=st.sampled_from([100, 300, 1_000]), most=st.sampled_from([None, None, 1, 2]))
    def send(self, batch_size: int, most: int | None) -> None:
        self.lane.most_records = most
        flight, poison = build(self.lane, _batch(batch_size), limit=self.LIMIT, now=0.0)
        if poison is not None:
            chunk, index, size = poison
            assert (self.lane.queue[0], chunk.start) == (chunk, index)
            assert size > self.LIMIT
        if flight is None:
            assert (poison is None) == (not self.expected)
            if poison is not None:
                assert chunk.messages[index].payload == self.expected.pop(0)
                chunk.start = index + 1
                chunk.done += 1
                if chunk.start == len(chunk.messages):
                    self.lane.queue.popleft()
            return
        values = _values(flight)
        assert values == self.expected[: flight.records]
        assert all(size_of(_ROUTE.key, len(value), ()) <= self.LIMIT for value in values)
        assert flight.records == sum(stop - start for _, start, stop in flight.pieces)
        assert most is None or flight.records <= most
        self.lane.flight = flight

    @precondition(lambda self: self.lane.flight is not None)
    @rule()
    def confirm(self) -> None:
        flight, self.lane.flight = self.lane.flight, None
        assert flight is not None
        for chunk, start, stop in flight.pieces:
            chunk.done += stop - start
        del self.expected[: flight.records]

    @rule()
    def take_back(self) -> None:
        self.lane.take_back()
        left = [message.payload for chunk in self.lane.queue for message in chunk.messages[chunk.start :]]
        assert left == self.expected
        assert all(chunk.start == chunk.done for chunk in self.lane.queue)

    def teardown(self) -> None:
        while self.expected:
            self.take_back()
            before = len(self.expected)
            self.send(1_000, None)
            if self.lane.flight is not None:
                self.confirm()
            assert len(self.expected) < before
        assert not self.lane.queue


TestLaneKeepsOrder: Any = LaneMachine.TestCase
TestLaneKeepsOrder.settings = settings(deadline=None, max_examples=100, stateful_step_count=30)


def _find_poison(lane: Lane, poison: bytes) -> tuple[int, list[bytes]]:
    """Send until the one record that Kafka refuses is alone; returns the batches sent and what was written."""
    written: list[bytes] = []
    for batches in range(1, 1_000):
        flight, _ = build(lane, _batch(), limit=_NO_LIMIT, now=0.0)
        assert flight is not None
        values = _values(flight)
        lane.flight = flight
        if poison not in values:
            lane.flight = None
            written += values
            lane.cleared(flight.records)
            continue
        lane.take_back()
        if len(values) == 1:
            lane.end_search()
            return batches, written
        lane.suspect(flight.records)
    raise AssertionError("never found")


@settings(deadline=None, max_examples=300)
@given(data=st.data(), sizes=st.lists(st.integers(1, 20), min_size=1, max_size=15))
def test_halving_finds_the_one_poison_record_and_writes_what_stands_before_it(
    data: st.DataObject, sizes: list[int]
) -> None:
    total = sum(sizes)
    numbers = iter(range(total))
    lane = _lane(*[_chunk(*[b"%d" % next(numbers) for _ in range(size)]) for size in sizes])
    at = data.draw(st.integers(0, total - 1))
    batches, written = _find_poison(lane, b"%d" % at)
    assert written == [b"%d" % number for number in range(at)]
    assert batches <= 2 * math.log2(total) + 2
    assert (lane.most_records, lane.suspects) == (None, 0)


@pytest.mark.parametrize("total", range(1, 140))
def test_the_search_is_short_wherever_the_poison_is(total: int) -> None:
    for at in range(total):
        batches, _ = _find_poison(_lane(_chunk(*[b"%d" % number for number in range(total)])), b"%d" % at)
        assert batches <= 2 * math.log2(total) + 2


def test_the_search_ends_when_every_suspect_turned_out_harmless() -> None:
    lane = _lane()
    lane.suspect(10)
    lane.suspect(5)
    assert (lane.most_records, lane.suspects) == (2, 10)
    lane.unnamed_failures = 2
    for _ in range(4):
        lane.cleared(2)
        assert lane.most_records == 2
    assert lane.unnamed_failures == 0
    lane.cleared(2)
    assert (lane.most_records, lane.suspects) == (None, 0)


def test_a_batch_has_at_least_one_record_however_long_the_search() -> None:
    lane = _lane()
    for _ in range(5):
        lane.suspect(1)
    assert lane.most_records == 1


def test_without_a_search_nothing_is_cleared() -> None:
    lane = _lane()
    lane.cleared(5)
    assert (lane.most_records, lane.suspects) == (None, 0)
