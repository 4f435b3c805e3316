"""The outbox: where records wait, and that nothing in it is forgotten."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from server.core.acks import AckWindow
from server.core.lifecycle import Reason
from server.core.mapping import Mapping
from server.kafka import outbox as outbox_module
from server.kafka.outbox import Outbox

REASON = Reason("invalid_record", "refused")


@dataclass(frozen=True, slots=True)
class Message:
    """A message as the outbox sees it."""

    payload: bytes
    topic: str = "t"
    qos: int = 1
    packet_id: int | None = 1


def _outbox(**spec: Any) -> Outbox:
    document = {"name": "m", "mqtt": {"topic": "#"}, "kafka": {"topic": "k"}, **spec}
    return Outbox(Mapping.model_validate(document), lambda key, count: sum(key) % count)


def _add(outbox: Outbox, *messages: Message) -> Any:
    arrival = AckWindow[Message]().arrive(messages, 0, 0.0)
    outbox.add(arrival, messages)
    return arrival


def _payloads(outbox: Outbox) -> list[bytes]:
    return [message.payload for _, message in outbox.unsent()]


def test_records_wait_together_until_partitions_are_known_and_then_per_lane() -> None:
    outbox = _outbox()
    arrival = _add(outbox, Message(b"1", "a"), Message(b"2", "b"))
    assert (arrival.open_parts, outbox.queued, dict(outbox.ready)) == (2, 0, {})
    assert _payloads(outbox) == [b"1", b"2"]
    assert outbox.follow(lambda _: 2) == []
    assert arrival.open_parts == 3
    assert outbox.queued == 2
    assert {lane.partition for lane in outbox.ready} == {0, 1}


def test_known_partitions_are_used_at_once_and_one_part_opens_per_lane() -> None:
    outbox = _outbox()
    outbox.follow(lambda _: 2)
    arrival = _add(outbox, Message(b"1", "a"), Message(b"2", "b"), Message(b"3", "a"))
    assert arrival.open_parts == 3
    assert outbox.queued == 3


def test_a_topic_kafka_does_not_show_is_named() -> None:
    outbox = _outbox()
    assert [topic.name for topic in outbox.follow(lambda _: 0)] == ["k"]


def test_what_can_not_be_mapped_is_handed_back_with_why() -> None:
    outbox = _outbox(kafka={"topic": "k", "key": "{topic[1]}"})
    outbox.follow(lambda _: 1)
    window: AckWindow[Message] = AckWindow()
    messages = [Message(b"1", "a"), Message(b"2", "a/b")]
    arrival = window.arrive(messages, 0, 0.0)
    ((message, why),) = outbox.add(arrival, messages)
    assert message is messages[0]
    assert "'a'" in why
    assert outbox.queued == 1


def test_a_dead_letter_waits_for_its_own_topic_and_has_its_own_part() -> None:
    outbox = _outbox(on_poison="dead_letter", dead_letter_topic="dead")
    outbox.follow(lambda _: 1)
    arrival = _add(outbox)
    outbox.add_dead_letter(arrival, Message(b"bad"), b"key", REASON)
    assert arrival.open_parts == 2
    assert outbox.queued == 0
    missing = outbox.follow(lambda name: 0 if name == "dead" else 1)
    assert [topic.name for topic in missing] == ["dead"]
    outbox.follow(lambda _: 1)
    assert outbox.queued == 1
    outbox.add_dead_letter(arrival, Message(b"worse"), None, REASON)
    assert outbox.queued == 2
    assert _payloads(outbox) == [b"bad", b"worse"]


def test_a_mapping_without_a_dead_letter_topic_has_no_dead_letters() -> None:
    outbox = _outbox()
    with pytest.raises(RuntimeError, match="no dead letter topic"):
        outbox.add_dead_letter(_add(outbox), Message(b""), None, REASON)


def test_the_record_at_the_front_can_be_skipped() -> None:
    outbox = _outbox()
    outbox.follow(lambda _: 1)
    _add(outbox, Message(b"1"), Message(b"2"))
    (lane,) = outbox.ready
    outbox.skip(lane)
    assert _payloads(outbox) == [b"2"]
    outbox.skip(lane)
    assert (_payloads(outbox), outbox.queued, len(lane.queue)) == ([], 0, 0)


def test_the_routes_that_are_remembered_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox_module, "MAX_ROUTES", 3)
    outbox = _outbox()
    outbox.follow(lambda _: 2)
    for number in range(10):
        _add(outbox, Message(b"%d" % number, f"t{number}"))
        assert len(outbox._routes) <= 3
    assert sorted(_payloads(outbox)) == [b"%d" % number for number in range(10)]


def test_more_partitions_place_new_records_anew() -> None:
    outbox = _outbox()
    outbox.follow(lambda _: 1)
    _add(outbox, Message(b"1", "b"))
    (lane,) = outbox.ready
    outbox.follow(lambda _: 2)
    _add(outbox, Message(b"2", "a"))
    assert outbox.queued == 1  # the second waits for the first
    outbox.skip(lane)
    outbox.ready.clear()
    outbox.follow(lambda _: 2)
    assert [(lane.partition, _payloads(outbox)) for lane in outbox.ready] == [(1, [b"2"])]
