"""Waiting for a condition in real time; where no socket and no thread takes part, virtualtime.py does without."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

_LOOK_SECONDS = 0.005


async def until(condition: Callable[[], object], *, within: float = 5.0) -> None:
    """Wait until the condition holds.

    Raises:
        TimeoutError: it did not within so many seconds.
    """
    async with asyncio.timeout(within):
        while not condition():
            await asyncio.sleep(_LOOK_SECONDS)
