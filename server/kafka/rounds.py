"""When a sink has something to do: it does it in the next turn of the event loop, once for all that asked for it."""

from __future__ import annotations

import asyncio
import contextvars
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


class Rounds:
    """Makes rounds until one fails.

    Plain calls and not a task that is woken: to wake one costs a future and a step of it, twice for each small request
    (docs/decisions/0018-sender.md). They have the context of who made this object: who brings messages is not who
    hears what the producer complains of (errorlog.py).
    """

    def __init__(self, make: Callable[[], None]) -> None:
        self._make = make
        self._loop = asyncio.get_running_loop()
        self._context = contextvars.copy_context()
        self._next: asyncio.Handle | None = None
        self._failed: asyncio.Future[None] = self._loop.create_future()

    def soon(self) -> None:
        """Ask for a round."""
        if self._next is None and not self._failed.done():
            self._next = self._loop.call_soon(self._round, context=self._context)

    async def until_one_fails(self) -> None:
        """Make rounds, and raise what one raises."""
        self.soon()
        try:
            await self._failed
        finally:
            if not self._failed.cancel() and not self._failed.cancelled():
                self._failed.exception()  # asyncio would report it if this task was cancelled just then

    def _round(self) -> None:
        self._next = None
        if self._failed.done():
            return
        try:
            self._make()
        except Exception as error:  # noqa: BLE001 - whatever it is, it is raised where the sink waits
            if not self._failed.done():  # by a cancellation: nobody wants to know any more
                self._failed.set_exception(error)
