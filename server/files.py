"""Files that others replace while the service runs, such as mounted secrets."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

POLL_SECONDS = 1.0

_Signature = tuple[tuple[int, ...] | None, ...]


async def on_change(files: Sequence[Path], act: Callable[[], None], *, every: float = POLL_SECONDS) -> NoReturn:
    """Call `act`, in a thread, whenever one of the files was replaced, written or removed; until cancelled.

    By asking and not by being told: what a cluster mounts changes through links, which inotify does not tell of.
    """
    known = await asyncio.to_thread(_signature, files)
    await asyncio.to_thread(act)  # it may have changed since it was read at the start
    while True:
        await asyncio.sleep(every)
        found = await asyncio.to_thread(_signature, files)
        if found != known:
            known = found
            await asyncio.to_thread(act)


def _signature(files: Sequence[Path]) -> _Signature:
    return tuple(_identity(file) for file in files)


def _identity(file: Path) -> tuple[int, ...] | None:
    try:
        found = file.stat()
    except OSError:
        return None  # whoever reads it says what is wrong
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns
