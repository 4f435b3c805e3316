"""When the sinks of a cluster ask for metadata though nothing flows, so that a Kafka that is away is noticed.

A question costs some 1.5 ms when the process was idle, so with many sinks each asks seldom. What one of them finds out
the others ask about at once: hundreds that are idle notice an outage about as soon as a few do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from server.ticks import tick_within

if TYPE_CHECKING:
    from collections.abc import Callable

QUESTION_SECONDS = 5.0
QUESTIONS_PER_SECOND = 4.0
IN_DOUBT_PER_SECOND = 100.0
# One broker of several that is away makes some questions go unanswered, again and again.
DOUBT_SECONDS = 30.0


class Questions:
    """The turns of those who ask, each known by what it is called with when its turn comes earlier than it was told."""

    def __init__(self) -> None:
        self._asking: dict[Callable[[float], None], None] = {}  # the first has asked least recently
        self._last_turn = 0.0
        self._doubted_until = 0.0

    def next_turn(self, sooner: Callable[[float], None], now: float) -> float:
        """When who got an answer `now` is to ask again: at a tick, for what is done together costs less."""
        self._asking.pop(sooner, None)
        self._asking[sooner] = None
        wait = max(QUESTION_SECONDS, self._last_turn + 1 / QUESTIONS_PER_SECOND - now)
        self._last_turn = now + wait
        return tick_within(now, wait)

    def leave(self, sooner: Callable[[float], None]) -> None:
        """Who does not ask any more."""
        self._asking.pop(sooner, None)

    def doubt(self, now: float) -> None:
        """Somebody got no answer: let all ask, quickly one after the other, unless they have just done so."""
        if now < self._doubted_until:
            return
        for place, sooner in enumerate(self._asking):
            sooner(now + place / IN_DOUBT_PER_SECOND)
        self._last_turn = now + len(self._asking) / IN_DOUBT_PER_SECOND
        self._doubted_until = self._last_turn + DOUBT_SECONDS
