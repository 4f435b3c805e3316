"""When the sinks of a cluster ask for metadata."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from server.kafka.questions import IN_DOUBT_PER_SECOND, QUESTION_SECONDS, QUESTIONS_PER_SECOND, Questions
from server.ticks import LONG_SECONDS

if TYPE_CHECKING:
    from collections.abc import Callable

_QUESTIONS_PER_TICK = QUESTIONS_PER_SECOND * LONG_SECONDS


class Fleet:
    """Sinks that ask whenever it is their turn."""

    def __init__(self, sinks: int, *, at: float) -> None:
        self.questions = Questions()
        self.turns: dict[int, float] = {}
        self.names: list[Callable[[float], None]] = [partial(self.turns.__setitem__, sink) for sink in range(sinks)]
        for sink in range(sinks):
            self.ask(sink, at)

    def ask(self, sink: int, now: float) -> None:
        self.turns[sink] = self.questions.next_turn(self.names[sink], now)

    def until(self, end: float) -> list[float]:
        """Let all ask in turn; the times they ask at."""
        asked = []
        while (at := min(self.turns.values())) < end:
            for sink in [sink for sink, turn in self.turns.items() if turn == at]:
                self.ask(sink, at)
                asked.append(at)
        return asked


def test_a_few_ask_every_few_seconds() -> None:
    fleet = Fleet(3, at=100.25)
    asked = fleet.until(200.0)
    assert len(asked) == 3 * (100 / QUESTION_SECONDS - 1)


def test_many_ask_in_turn_and_all_together_not_too_often() -> None:
    fleet = Fleet(1_000, at=100.0)
    asked = fleet.until(1_100.0)
    assert max(asked.count(at) for at in asked) <= _QUESTIONS_PER_TICK
    assert 0.95 * QUESTIONS_PER_SECOND < len(asked) / 995 <= QUESTIONS_PER_SECOND
    assert all(at % LONG_SECONDS == 0 for at in asked)


def test_in_doubt_all_ask_soon_and_only_once() -> None:
    fleet = Fleet(1_000, at=100.0)
    fleet.until(400.0)
    fleet.questions.doubt(400.0)
    assert sorted(fleet.turns.values()) == [400.0 + place / IN_DOUBT_PER_SECOND for place in range(1_000)]
    turns = dict(fleet.turns)
    fleet.questions.doubt(425.0)
    assert fleet.turns == turns
    asked = fleet.until(1_500.0)
    late = [at for at in asked if at > 420.0]
    assert max(late.count(at) for at in late) <= _QUESTIONS_PER_TICK + 1


def test_those_who_get_answers_again_one_after_the_other_ask_in_turn_again() -> None:
    fleet = Fleet(1_000, at=100.0)
    fleet.until(400.0)
    fleet.questions.doubt(400.0)
    for sink in range(1_000):  # an outage of a minute: each hears of its end at some time of two seconds
        fleet.ask(sink, 460.0 + (sink * 7 % 1_000) / 500)
    asked = fleet.until(800.0)
    assert max(asked.count(at) for at in asked) <= _QUESTIONS_PER_TICK


def test_who_has_left_is_not_asked() -> None:
    fleet = Fleet(2, at=100.0)
    fleet.questions.leave(fleet.names[0])
    turn = fleet.turns[0]
    fleet.questions.doubt(100.5)
    assert fleet.turns == {0: turn, 1: 100.5}
    fleet.questions.leave(fleet.names[0])
