"""Waking together: what does not matter to the moment is done on the whole seconds of the event loop's clock.

To wake an idle process costs more than what it then does, for its code and data are far away then: with timers of their
own, 1,000 idle mappings woke it 170 times a second (docs/decisions/0020-an-idle-service-sleeps.md).
"""

from __future__ import annotations

import asyncio
import math


def tick_within(now: float, seconds: float) -> float:
    """The last whole second that is at most `seconds` after `now`, or just then if there is none."""
    at = now + seconds
    tick = math.floor(at)
    return tick if tick > now else at


async def sleep_to_tick(seconds: float) -> None:
    """Sleep for up to `seconds`, and for less than a second less."""
    now = asyncio.get_running_loop().time()
    await asyncio.sleep(tick_within(now, seconds) - now)
