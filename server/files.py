"""Files that others replace while the service runs, such as mounted secrets."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

POLL_SECONDS = 1.0

Version = tuple[int, int, int, int]


async def on_change(files: Sequence[Path], act: Callable[[], None], *, every: float = POLL_SECONDS) -> NoReturn:
    """Call `act`, in a thread, whenever one of the files was replaced, written or removed; until cancelled.

    By asking and not by being told: what a cluster mounts changes through links, which inotify does not tell of.
    """
    known = await asyncio.to_thread(_versions, files)
    await asyncio.to_thread(act)  # it may have changed since it was read at the start
    while True:
        await asyncio.sleep(every)
        found = await asyncio.to_thread(_versions, files)
        if found != known:
            known = found
            await asyncio.to_thread(act)


def version(file: Path | str) -> Version | None:
    """What changes when a file is replaced or written to, links followed; None while it can't be seen.

    Whoever reads the file says what is wrong with it.
    """
    try:
        found = os.stat(file)  # noqa: PTH116 - also for paths as they were configured
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _versions(files: Sequence[Path]) -> list[Version | None]:
    return [version(file) for file in files]
