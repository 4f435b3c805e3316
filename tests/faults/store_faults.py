"""The store of the running service full, read-only, locked, removed: forwarding goes on, and /readyz says why."""

from __future__ import annotations

import asyncio
import sqlite3
import subprocess
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from tests.faults.run import UnableError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path

    from tests.faults.run import Case, Run

_OK = 200
_FILES = ("mkf.db", "mkf.db-wal", "mkf.db-shm")


async def fill_disk(run: Run, case: Case) -> None:
    """No room is left on its disk."""
    await _until_noticed(run, case, _full)


async def read_only(run: Run, case: Case) -> None:
    """Its files can't be written to."""
    await _until_noticed(run, case, _immutable)


async def lock(run: Run, case: Case) -> None:
    """Another program holds the database locked."""
    await _until_noticed(run, case, _locked)


async def remove(run: Run, case: Case) -> None:
    """Its files are moved away, and later back."""
    await _until_noticed(run, case, _removed)


async def _until_noticed(run: Run, case: Case, breaking: Callable[[Path], AbstractContextManager[None]]) -> None:
    with ExitStack() as stack:
        for folder in run.stores.values():
            stack.enter_context(breaking(folder))
        await run.until(
            lambda: all(watch.latest.ready.status not in {0, _OK} for watch in run.watches.values()), "said so", 20
        )
        await asyncio.sleep(case.seconds(0, 30, quick=1))


@contextmanager
def _full(folder: Path) -> Iterator[None]:
    filler = folder / "filler"
    with filler.open("wb", buffering=0) as file:
        try:
            while file.write(b"\0" * 4096):
                pass
        except OSError:
            pass
    try:
        yield
    finally:
        filler.unlink()


@contextmanager
def _immutable(folder: Path) -> Iterator[None]:
    files = [folder / name for name in _FILES]
    try:
        _chattr("+i", files)
        yield
    finally:
        _chattr("-i", files)


def _chattr(change: str, files: list[Path]) -> None:
    if subprocess.run(["chattr", change, *files], check=False, capture_output=True).returncode:
        raise UnableError("making a file immutable needs root, and a file system that can")


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    connection = sqlite3.connect(folder / "mkf.db", isolation_level=None)
    try:
        connection.execute("BEGIN IMMEDIATE")
        yield
    finally:
        connection.close()


@contextmanager
def _removed(folder: Path) -> Iterator[None]:
    aside = folder / "aside"
    aside.mkdir()
    for name in _FILES:
        (folder / name).rename(aside / name)
    try:
        yield
    finally:
        for name in _FILES:
            (aside / name).replace(folder / name)
        aside.rmdir()
