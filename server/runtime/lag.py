"""How late the event loop is: everything here shares it, so nothing can be quicker than it turns."""

from __future__ import annotations

import asyncio

from server.runtime.histogram import Histogram
from server.ticks import tick_within

SAMPLE_SECONDS = 0.25
BOUNDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)


class LoopLag(Histogram):
    """How much later than asked for the loop wakes up (seconds)."""

    def __init__(self) -> None:
        super().__init__(BOUNDS)

    async def watch(self) -> None:
        """Measure until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            now = loop.time()
            due = tick_within(now, SAMPLE_SECONDS)
            await asyncio.sleep(due - now)
            self.note(max(0.0, loop.time() - due))
