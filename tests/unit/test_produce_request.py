"""Produce requests packed by hand are byte for byte aiokafka's, and their answers mean the same."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from aiokafka.errors import IncompatibleBrokerVersion
from aiokafka.protocol.produce import ProduceRequest, ProduceRequest_v3, ProduceResponse_v7
from hypothesis import given
from hypothesis import strategies as st

from server.kafka.produce_request import Answer, Request, RequestBody, correlation_id

int16, int32 = st.integers(-(2**15), 2**15 - 1), st.integers(-(2**31), 2**31 - 1)
int64 = st.integers(-(2**63), 2**63 - 1)
topic_names = st.text(max_size=40)
KAFKA_4 = {0: (0, 13)}
TOPICS = [("t", [(0, b"batch")])]


def _topics_of(partition: st.SearchStrategy[object]) -> st.SearchStrategy[list[tuple[str, list[object]]]]:
    return st.lists(st.tuples(topic_names, st.lists(partition, max_size=5)), max_size=4)


def _aiokafkas(acks: int, timeout_ms: int, topics: list[Any], correlation_id: int, client_id: str) -> bytes:
    theirs = ProduceRequest(None, acks, timeout_ms, topics).prepare(KAFKA_4)
    header: bytes = theirs.build_request_header(correlation_id, client_id).encode()
    message = header + theirs.encode()
    return bytes(struct.pack(">i", len(message)) + message)


@given(
    acks=int16,
    timeout_ms=int32,
    topics=_topics_of(st.tuples(int32, st.binary(max_size=50))),
    correlation_id=int32,
    client_id=topic_names,
)
def test_a_request_is_what_aiokafka_would_send(
    acks: int, timeout_ms: int, topics: list[tuple[str, list[tuple[int, bytes]]]], correlation_id: int, client_id: str
) -> None:
    ours = Request(acks, timeout_ms, topics).prepare(KAFKA_4)
    assert b"".join(ours.pieces(correlation_id, client_id)) == _aiokafkas(
        acks, timeout_ms, topics, correlation_id, client_id
    )


def test_large_batches_are_sent_as_they_lie() -> None:
    batches = [(partition, bytearray(40_000)) for partition in range(2)]
    body = Request(-1, 40_000, [("t", batches)]).prepare(KAFKA_4)
    pieces = body.pieces(7, "me")
    assert [sum(piece is batch for piece in pieces) for _, batch in batches] == [1, 1]
    copies = [("t", [(partition, bytes(batch)) for partition, batch in batches])]
    assert b"".join(pieces) == _aiokafkas(-1, 40_000, copies, 7, "me")


def test_a_batch_may_be_any_buffer() -> None:
    request = Request(-1, 40_000, [("t", [(0, bytearray(b"batch"))])]).prepare(KAFKA_4)
    of_bytes = Request(-1, 40_000, TOPICS).prepare(KAFKA_4)
    assert request.pieces(7, "me") == of_bytes.pieces(7, "me")


@given(topics=_topics_of(st.tuples(int32, int16, int64, int64, int64)), throttle_time_ms=int32)
def test_an_answer_says_what_aiokafka_would_read(
    topics: list[tuple[str, list[tuple[int, ...]]]], throttle_time_ms: int
) -> None:
    body = ProduceResponse_v7(topics, throttle_time_ms).encode()
    found, wanted = Answer.decode(bytes(4) + body), ProduceResponse_v7.decode(body)
    assert found.topics == wanted.topics
    assert found.API_VERSION == 7


def test_a_frame_begins_with_the_number_of_the_request_it_answers() -> None:
    frame = struct.pack(">i", 5) + ProduceResponse_v7([("t", [(0, 0, 7, -1, 0)])], 0).encode()
    assert correlation_id(frame) == 5
    assert Answer.decode(frame).topics == [("t", [(0, 0, 7, -1, 0)])]


@given(cut=st.integers(0, 60))
def test_an_answer_that_ends_too_early_is_an_error(cut: int) -> None:
    frame = bytes(4) + ProduceResponse_v7([("topic", [(0, 0, 7, -1, 0), (1, 0, 7, -1, 0)])], 0).encode()
    assert len(frame) > 60
    with pytest.raises((struct.error, ValueError)):
        Answer.decode(frame[:cut])


def test_a_broker_that_does_not_know_this_version_gets_aiokafkas_own() -> None:
    assert type(Request(-1, 1, TOPICS).prepare({0: (0, 3)})) is ProduceRequest_v3
    assert isinstance(Request(-1, 1, TOPICS).prepare({0: (7, 7)}), RequestBody)
    with pytest.raises(NotImplementedError, match="v8"):  # nor does aiokafka
        Request(-1, 1, TOPICS).prepare({0: (8, 13)})
    with pytest.raises(IncompatibleBrokerVersion):
        Request(-1, 1, TOPICS).prepare({3: (0, 13)})
