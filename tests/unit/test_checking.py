"""The judge judged: a checker that overlooks a fault makes every test that uses it worthless."""

from __future__ import annotations

import pytest

from tests.brokers import Record
from tests.checking import History, check_history, java_partition, murmur2

SENT = [("a", b"0"), ("b", b"0"), ("a", b"1"), ("a", b"2"), ("b", b"1")]


def records(*messages: tuple[str, bytes], partitions: dict[str, int] | None = None) -> list[Record]:
    places = partitions or {}
    return [
        Record(places.get(topic, 0), offset, topic.encode(), payload, (), offset)
        for offset, (topic, payload) in enumerate(messages)
    ]


def test_a_whole_history_has_no_problems() -> None:
    assert check_history(records(*SENT), SENT) == History()
    assert check_history(records(*SENT), SENT).problems() == []
    assert check_history([], []).problems() == []


def test_topics_may_come_in_any_order_against_each_other() -> None:
    arrived = records(*sorted(SENT, key=lambda message: message[0] == "a"), partitions={"a": 1})
    assert check_history(arrived, SENT).problems() == []


@pytest.mark.parametrize("missing", range(len(SENT)))
def test_a_lost_message_is_named(missing: int) -> None:
    history = check_history(records(*SENT[:missing], *SENT[missing + 1 :]), SENT)
    assert history == History(lost=[SENT[missing]])
    assert history.problems() == [f"1 lost: {[SENT[missing]]}"]


@pytest.mark.parametrize("again", range(len(SENT)))
def test_a_repeat_is_counted_and_is_no_disorder(again: int) -> None:
    arrived = records(*SENT, SENT[again])
    history = check_history(arrived, SENT)
    assert history == History(repeats=[arrived[-1]])
    assert len(history.problems()) == 1
    assert history.problems(repeats_allowed=1) == []


def test_two_copies_more_are_two_repeats() -> None:
    history = check_history(records(*SENT, SENT[0], SENT[0]), SENT)
    assert len(history.problems(repeats_allowed=1)) == 1
    assert history.problems(repeats_allowed=2) == []


def test_a_repeated_run_keeps_the_order() -> None:
    assert check_history(records(*SENT[:3], *SENT), SENT).problems(repeats_allowed=3) == []


def test_swapped_messages_of_a_topic_are_out_of_order() -> None:
    history = check_history(records(("a", b"0"), ("a", b"2"), ("a", b"1"), ("b", b"0"), ("b", b"1")), SENT)
    assert history == History(disordered=[("a", b"1")])
    assert len(history.problems(repeats_allowed=100)) == 1


def test_a_repeat_does_not_hide_a_message_that_came_too_late() -> None:
    arrived = records(("a", b"0"), ("a", b"2"), ("a", b"0"), ("a", b"1"), ("a", b"2"), ("b", b"0"), ("b", b"1"))
    assert check_history(arrived, SENT).disordered == [("a", b"1")]


def test_a_topic_in_two_partitions_has_no_order() -> None:
    arrived = records(*SENT)
    arrived[2] = Record(1, 0, b"a", b"1", (), 0)
    assert check_history(arrived, SENT).scattered == ["a"]
    assert len(check_history(arrived, SENT).problems()) == 1


def test_what_nobody_published_is_a_problem() -> None:
    stranger = records(("a", b"other"))[0]
    nameless = Record(0, 9, None, None, (), 0)
    history = check_history([*records(*SENT), stranger, nameless], SENT)
    assert history == History(unexpected=[stranger, nameless])
    assert len(history.problems(repeats_allowed=100)) == 1


def test_messages_that_cannot_be_told_apart_are_refused() -> None:
    with pytest.raises(ValueError, match="published twice"):
        check_history([], [("a", b"0"), ("a", b"0")])


@pytest.mark.parametrize(
    ("data", "expected"),
    [  # from Kafka's own UtilsTest
        (b"21", -973932308),
        (b"foobar", -790332482),
        (b"a-little-bit-long-string", -985981536),
        (b"a-little-bit-longer-string", -1486304829),
        (b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58897971),
        (b"abc", 479470107),
    ],
)
def test_murmur2_is_javas(data: bytes, expected: int) -> None:
    assert murmur2(data) == expected % 2**32
    assert java_partition(data, 2**31) == expected % 2**31
