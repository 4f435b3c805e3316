"""When a sink is to look at its cluster: at the time that was planned, and when a batch is not answered in time."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from server.kafka.lanes import Flight
    from server.ticks import Ticks, Turn

# How long after a batch was sent nothing can be seen of it but its answer.
STALL_SECONDS = 3.0
CLOCK_SECONDS = 0.001  # what uvloop's timers can tell apart


class Looks:
    """One timer, which is moved only if it would come too late: there are hundreds of batches a second."""

    def __init__(self, flights: Collection[Flight], due: Callable[[], None], ticks: Ticks) -> None:
        self._flights = flights
        self._due = due
        self._ticks = ticks
        self._planned = 0.0
        self._timer: Turn | None = None
        self.due = True

    def now(self) -> None:
        """Look in the next round."""
        self.due = True
        self._due()

    def plan(self, at: float) -> None:
        """The look that was due is made; the next one is due then (monotonic seconds)."""
        self.due = False
        self._planned = at
        if not self._flights:
            self.end()  # the timer was for them
        self._wake_at(at)

    def sooner(self, at: float) -> None:
        """Look then, if not before."""
        self._planned = min(self._planned, at)
        self._wake_at(self._planned)

    def sent(self) -> None:
        """Something was sent: it may come to be late."""
        self._wake_at(time.monotonic() + STALL_SECONDS)

    def end(self) -> None:
        """No look any more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _wake_at(self, at: float) -> None:
        if self._timer is not None and self._timer.at > at:
            self._timer.cancel()
            self._timer = None
        if self._timer is None:
            self._timer = self._ticks.call_at(at, self._wake)

    def _wake(self) -> None:
        """Look, unless what was in flight when the timer was set has been answered meanwhile."""
        self._timer = None
        late = min((flight.sent_at for flight in self._flights), default=math.inf) + STALL_SECONDS
        at = min(late, self._planned)
        if at - time.monotonic() > CLOCK_SECONDS:
            self._wake_at(at)
        else:
            self.now()
