"""Waking together: what does not matter to the moment is done at ticks of the event loop's clock.

To wake an idle process costs more than what it then does, for its code and data are far away then: with timers of their
own, 1,000 idle mappings woke it 170 times a second. PINGREQs, questions to Kafka and the store's heartbeat have every
fifth second for all, so that what they need is fetched once (docs/decisions/0020-an-idle-service-sleeps.md).
"""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

LONG_SECONDS = 5


def tick_within(now: float, seconds: float) -> float:
    """The last tick that is at most `seconds` after `now`, or just then if there is none.

    For `LONG_SECONDS` and more that is a multiple of them, else a whole second.
    """
    at = now + seconds
    grid = LONG_SECONDS if seconds >= LONG_SECONDS else 1
    tick = math.floor(at / grid) * grid
    return tick if tick > now else at


async def sleep_to_tick(seconds: float) -> None:
    """Sleep for up to `seconds`, until a tick."""
    now = asyncio.get_running_loop().time()
    await asyncio.sleep(tick_within(now, seconds) - now)


class Ticks:
    """Timers of one event loop, of which all that are due at the same time share one of the loop's.

    The loop's own are a heap: with thousands of them, to set one or to take one out reads a dozen others, and none of
    those is in the processor's caches when the process was idle.
    """

    def __init__(self) -> None:
        self._ticks: dict[float, _Tick] = {}

    def call_at(self, at: float, call: Callable[[], None]) -> Turn:
        """Call then, by the loop's clock (seconds), in anybody's context.

        What it raises goes to the loop's exception handler.
        """
        tick = self._ticks.get(at)
        if tick is None:
            tick = self._ticks[at] = _Tick(at, self._ticks)
        return tick.turn(call)


class Turn:
    """A call that is to come."""

    __slots__ = ("_tick",)

    def __init__(self, tick: _Tick) -> None:
        self._tick = tick

    @property
    def at(self) -> float:
        """When, by the loop's clock (seconds)."""
        return self._tick.at

    def cancel(self) -> None:
        """Don't call, unless that is done."""
        self._tick.leave(self)


class _Tick:
    """All who are called at the same time; it is among `ticks` until then, or until nobody is left."""

    __slots__ = ("_ticks", "_timer", "_turns", "at")

    def __init__(self, at: float, ticks: dict[float, _Tick]) -> None:
        self.at, self._ticks = at, ticks
        self._turns: dict[Turn, Callable[[], None]] = {}
        self._timer = asyncio.get_running_loop().call_at(at, self._strike)

    def turn(self, call: Callable[[], None]) -> Turn:
        turn = Turn(self)
        self._turns[turn] = call
        return turn

    def leave(self, turn: Turn) -> None:
        if self._turns.pop(turn, None) is not None and not self._turns:
            self._end()
            self._timer.cancel()

    def _strike(self) -> None:
        self._end()
        for turn in list(self._turns):
            call = self._turns.pop(turn, None)
            if call is None:
                continue  # one before it cancelled it
            try:
                call()
            except Exception as error:  # noqa: BLE001 - as the loop does: the others are not to suffer
                context = {"message": f"{call!r} failed at its tick", "exception": error}
                asyncio.get_running_loop().call_exception_handler(context)

    def _end(self) -> None:
        """Take no turns any more; at this time there may be another by now."""
        if self._ticks.get(self.at) is self:
            del self._ticks[self.at]
