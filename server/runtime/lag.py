"""How late the event loop is: everything here shares it, so nothing can be quicker than it turns."""

from __future__ import annotations

import asyncio
import time

from server.runtime.histogram import Histogram
from server.ticks import tick_within

SAMPLE_SECONDS = 0.25
_IDLE_SAMPLE_SECONDS = 1.0
_IDLE_CORES = 0.1
BOUNDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)


class LoopLag(Histogram):
    """How much later than asked for the loop wakes up (seconds)."""

    def __init__(self) -> None:
        super().__init__(BOUNDS)

    async def watch(self) -> None:
        """Measure until cancelled; an idle process only once a second: it is not late, and to wake it has a price."""
        loop = asyncio.get_running_loop()
        every = SAMPLE_SECONDS
        while True:
            began, used = loop.time(), time.process_time()
            due = tick_within(began, every)
            await asyncio.sleep(due - began)
            self.note(max(0.0, loop.time() - due))
            busy = time.process_time() - used > _IDLE_CORES * (due - began)
            every = SAMPLE_SECONDS if busy else _IDLE_SAMPLE_SECONDS
