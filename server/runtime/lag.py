"""How late the event loop is: everything here shares it, so nothing can be quicker than it turns."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from server.runtime.histogram import Histogram
from server.ticks import tick_within

if TYPE_CHECKING:
    from collections.abc import Callable

SAMPLE_SECONDS = 0.5
BOUNDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)


class LoopLag(Histogram):
    """How much later than asked for the loop wakes up (seconds)."""

    def __init__(self) -> None:
        super().__init__(BOUNDS)

    async def watch(self, tell: Callable[[float], None]) -> None:
        """Measure until cancelled, and tell every sample (seconds)."""
        loop = asyncio.get_running_loop()
        while True:
            now = loop.time()
            due = tick_within(now, SAMPLE_SECONDS)
            await asyncio.sleep(due - now)
            late = max(0.0, loop.time() - due)
            self.note(late)
            tell(late)
