"""MQTT topic filters, against the definition of matching and against brute force over a small alphabet."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from server.core.topics import (
    any_overlap,
    covers,
    filter_error,
    kafka_topic_error,
    matches,
    mqtt_string_error,
    overlap,
    uncovered,
)

_LEVELS = ["a", "b", "", "$x"]
# Deeper than any generated filter by one, which is as far as two of them can be told apart.
_TOPICS = ["/".join(levels) for depth in range(1, 5) for levels in itertools.product(_LEVELS, repeat=depth)]
_TOPICS.remove("")


@st.composite
def topic_filters(draw: st.DrawFn) -> str:
    levels = draw(st.lists(st.sampled_from([*_LEVELS, "+"]), min_size=1, max_size=3))
    if draw(st.booleans()):
        levels[-1] = "#"
    return "/".join(levels) or "a"


def _matched(topic_filter: str) -> set[str]:
    return {topic for topic in _TOPICS if matches(topic_filter, topic)}


@pytest.mark.parametrize(
    ("topic_filter", "topic", "expected"),
    [
        ("sport/tennis/player1/#", "sport/tennis/player1", True),
        ("sport/tennis/player1/#", "sport/tennis/player1/ranking", True),
        ("sport/tennis/player1/#", "sport/tennis/player1/score/wimbledon", True),
        ("sport/tennis/+", "sport/tennis/player1", True),
        ("sport/tennis/+", "sport/tennis/player1/ranking", False),
        ("sport/+", "sport", False),
        ("sport/+", "sport/", True),
        ("+/+", "/finance", True),
        ("/+", "/finance", True),
        ("+", "/finance", False),
        ("#", "$SYS/broker", False),
        ("+/monitor/Clients", "$SYS/monitor/Clients", False),
        ("$SYS/#", "$SYS/broker", True),
        ("$SYS/monitor/+", "$SYS/monitor/Clients", True),
        ("a/b", "a/b/c", False),
        ("a/b/c", "a/b", False),
        ("a", "A", False),
    ],
)
def test_matching_follows_the_examples_of_the_specification(topic_filter: str, topic: str, expected: bool) -> None:
    assert matches(topic_filter, topic) is expected


@example("#", "$x/a")
@example("+/#", "#")
@example("/+/#", "/#")
@example("+/+/#", "/#")
@example("a/#", "a")
@example("a/b", "a")
@example("a", "a/b")
@example("a/+", "a/#")
@example("a/+", "b/a")
@given(topic_filters(), topic_filters())
def test_a_filter_covers_another_exactly_if_it_matches_all_of_its_topics(wide: str, narrow: str) -> None:
    assert covers(wide, narrow) == (_matched(narrow) <= _matched(wide))


@example("#", "$x/a")
@example("+/#", "#")
@example("a/#", "a")
@example("a/b", "a")
@example("a", "a/b")
@example("a/+", "a/#")
@example("/#", "+")
@example("a/+", "b/a")
@given(topic_filters(), topic_filters())
def test_filters_overlap_exactly_if_some_topic_matches_both(first: str, second: str) -> None:
    assert overlap(first, second) == bool(_matched(first) & _matched(second))


@given(st.lists(topic_filters(), max_size=5))
def test_the_uncovered_filters_match_the_same_topics_as_all_of_them(filters: list[str]) -> None:
    kept = uncovered(filters)

    assert set().union(*map(_matched, kept)) == set().union(*map(_matched, filters))
    assert [topic_filter for topic_filter in dict.fromkeys(filters) if topic_filter in kept] == list(kept)
    assert not any(covers(a, b) for a in kept for b in kept if a != b)


def test_of_two_filters_that_match_the_same_the_first_is_kept() -> None:
    assert uncovered(["+/#", "#"]) == ("+/#",)
    assert uncovered(["#", "+/#"]) == ("#",)


def test_any_overlap_looks_at_every_pair() -> None:
    assert any_overlap(["a/b", "c", "a/+"])
    assert not any_overlap(["a/b", "c", "b/+"])


@pytest.mark.parametrize("topic_filter", ["#", "+", "a", "/", "+/a/#", "a b/ü", "$SYS/#", "a" * 65_535])
def test_a_valid_filter_has_no_error(topic_filter: str) -> None:
    assert filter_error(topic_filter) is None


@pytest.mark.parametrize(
    ("topic_filter", "reason"),
    [
        ("", "must not be empty"),
        ("a\0b", "null character"),
        ("\ud800", "valid UTF-8"),
        ("ü" * 32_768, "at most 65535 bytes, this one has 65536"),
        ("$share/group/a", "lose the order"),
        ("a/#/b", "level 2"),
        ("a#", "level 1"),
        ("a/b+", "level 2"),
    ],
)
def test_an_invalid_filter_is_refused_with_the_reason(topic_filter: str, reason: str) -> None:
    assert reason in str(filter_error(topic_filter))


def test_an_mqtt_string_error_does_not_show_the_string() -> None:
    assert mqtt_string_error("secret\0", "a user name") == "a user name must not contain the null character"


@pytest.mark.parametrize("topic", ["a", "A.b_c-1", "x" * 249, "..."])
def test_a_valid_kafka_topic_has_no_error(topic: str) -> None:
    assert kafka_topic_error(topic) is None


@pytest.mark.parametrize(
    ("topic", "reason"),
    [
        ("", "empty"),
        (".", "named '.'"),
        ("..", "named '..'"),
        ("x" * 250, "at most 249"),
        ("a/b", "ASCII"),
        ("ü", "ASCII"),
        ("a\n", "ASCII"),
    ],
)
def test_an_invalid_kafka_topic_is_refused_with_the_reason(topic: str, reason: str) -> None:
    assert reason in str(kafka_topic_error(topic))
