"""Kafka's condition: several causes, one reason, told when it changes."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

from hypothesis import given
from hypothesis import strategies as st

from server.core.lifecycle import Reason
from server.kafka.condition import Cause, Condition

if TYPE_CHECKING:
    from collections.abc import Sequence

A, B = Reason("a", "first"), Reason("b", "second")


def _condition() -> tuple[Condition, list[Reason | None]]:
    told: list[Reason | None] = []
    return Condition(told.append), told


def test_it_says_that_all_is_well_once() -> None:
    condition, told = _condition()
    condition.tell()
    condition.tell()
    assert told == [None]


def test_noting_alone_tells_nothing() -> None:
    condition, told = _condition()
    condition.note(Cause.STALL, A)
    assert told == []
    assert condition.has(Cause.STALL)
    assert not condition.has(Cause.TOPIC)


def test_the_cause_that_explains_the_most_is_told() -> None:
    condition, told = _condition()
    condition.note(Cause.STALL, A)
    condition.note(Cause.REACH, B)
    condition.tell()
    condition.note(Cause.REACH, None)
    condition.tell()
    condition.note(Cause.STALL, None)
    condition.tell()
    assert told == [B, A, None]


def test_a_cause_that_does_not_hold_may_end() -> None:
    condition, told = _condition()
    condition.note(Cause.START, None)
    condition.tell()
    assert told == [None]


def test_another_detail_of_the_same_cause_is_told() -> None:
    condition, told = _condition()
    for reason in (A, A, B):
        condition.note(Cause.SENDS, reason)
        condition.tell()
    assert told == [A, B]


@given(st.lists(st.tuples(st.sampled_from(Cause), st.sampled_from([A, B, None]), st.booleans())))
def test_what_was_told_last_is_always_the_truth(history: Sequence[tuple[Cause, Reason | None, bool]]) -> None:
    condition, told = _condition()
    holding: dict[Cause, Reason] = {}
    for cause, reason, tell in history:
        condition.note(cause, reason)
        holding.pop(cause, None)
        if reason is not None:
            holding[cause] = reason
        if tell:
            condition.tell()
            assert told[-1] == (holding[min(holding)] if holding else None)
    assert all(before != after for before, after in pairwise(told))
