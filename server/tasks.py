"""Waiting for tasks and events: nothing is started here that nobody awaits."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Coroutine


async def ended(*tasks: asyncio.Task[Any]) -> None:
    """Cancel the tasks and wait until they have ended; their results are the caller's business."""
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)


async def first_of(*waits: Coroutine[Any, Any, Any]) -> None:
    """Wait for the first to finish; the others are cancelled."""
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        await ended(*tasks)


async def to_the_end(ending: Coroutine[Any, Any, None]) -> None:
    """Await this even if cancelled meanwhile; the cancellation follows when it is done."""
    task = asyncio.create_task(ending)
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        raise


async def event_within(event: asyncio.Event, seconds: float) -> None:
    """Wait until the event is set, for so many seconds at most."""
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return
