"""The lock of a store in SQLite: a file beside the database."""

from __future__ import annotations

import fcntl
import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING

from server.store.errors import StoreError
from server.store.location import create_folder, database_path
from server.store.lock import StoreLock

if TYPE_CHECKING:
    from sqlalchemy import URL


class FileLock(StoreLock):
    """An exclusive lock on `<database file>.lock`, which the end of the process releases, however it ends.

    A store in memory belongs to its process anyway: its lock is always free.
    """

    takeover_seconds = 0.0  # whoever lost it has ended

    def __init__(self, url: URL) -> None:
        self._url = url
        self._file: int | None = None

    async def try_acquire(self) -> bool:
        """Take the lock if it is free, without waiting; True also if it is already ours.

        Raises:
            StoreError: the URL says more than where a file is, or the lock file can't be written.
        """
        path = self._path()
        if path is None or self._file is not None:
            return True
        create_folder(path)
        try:
            file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise self._unusable(error) from error
        # flock, not lockf: a lockf lock is lost as soon as the process closes any descriptor of the file.
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(file, 0)
            os.pwrite(file, f"pid {os.getpid()} on {socket.gethostname()}".encode(), 0)
        except BlockingIOError:
            os.close(file)
            return False
        except OSError as error:
            os.close(file)
            raise self._unusable(error) from error
        self._file = file
        return True

    async def holder(self) -> str:
        """Who holds the lock, for a message: "pid 7 on host-a"; asked after `try_acquire` returned False.

        Raises:
            StoreError: the URL says more than where a file is.
        """
        path = self._path()
        if path is None:
            return f"pid {os.getpid()} on {socket.gethostname()}"
        try:
            return path.read_text(errors="replace") or "another process"
        except OSError:
            # Gone between the attempt and the question; the message must not fail over it.
            return "another process"

    async def check(self) -> None:
        """It can't be lost while the process lives."""

    async def release(self) -> None:
        """Give the lock back; harmless if it is not ours."""
        # The file stays: removing it would let a third process lock a new one while a second waits for this one.
        if self._file is not None:
            os.ftruncate(self._file, 0)
            os.close(self._file)
            self._file = None

    def _path(self) -> Path | None:
        database = database_path(self._url)
        return None if database is None else Path(f"{database}.lock")

    def _unusable(self, error: OSError) -> StoreError:
        return StoreError(
            f"the lock file {self._path()} can't be used: {error.strerror};"
            " let the service write to it and its folder, or name another file in the store's URL"
        )
