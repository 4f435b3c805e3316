"""What a store asks of its database; which one it is, is what its URL says."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from server.store.location import parsed_url

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from sqlmodel import Session

    from server.store.lock import StoreLock
    from server.store.worker import Job


class Database(ABC):
    """One connection to one database, for one thread at a time; only `interrupt` is for others.

    `elsewhere` says how to name another one in the store's URL, `slow` what to check if it does not answer in time.
    """

    elsewhere: str
    slow: str

    @property
    @abstractmethod
    def name(self) -> str:
        """What messages call it; without the password."""

    @abstractmethod
    def create(self, job: Job) -> None:
        """See that there is a database in order, and create it where that is ours to do.

        Raises:
            StoreError: it can't be used.
            StoreUnavailableError: it can't be used now.
        """

    @abstractmethod
    def transaction(self, job: Job, *, writing: bool, opening: bool = False) -> AbstractContextManager[Session]:
        """One transaction for `job`: committed at the end, rolled back on any exception.

        Those with `writing` are serialised; the others see one moment.

        Raises:
            StoreUnavailableError: the database can't be used now, or the caller has given up meanwhile.
            StoreError: only with `opening`: it can't be used at all.
        """

    def watch_files(self) -> None:  # noqa: B027 - not every database has files
        """From now on notice also that a file which the first write has made is gone."""

    def check_space(self) -> None:  # noqa: B027 - not every disk is this machine's
        """Notice a full disk before a write that needs more room than the last one does.

        Raises:
            StoreUnavailableError: it is full, or can't be looked at.
        """

    @abstractmethod
    def interrupt(self) -> None:
        """Make the statement under way fail, without waiting for anything."""

    @abstractmethod
    def close(self) -> None:
        """Close the connection; harmless if there is none."""


def database_at(url: str, lock: StoreLock | None = None) -> Database:
    """The database `url` names; nothing is opened yet.

    With a `lock` that is kept in the database nothing is written while that is not held.

    Raises:
        StoreError: the URL can't be read, or names a database that is not supported.
    """
    parsed = parsed_url(url)
    # Each costs memory, so only the one that is used is loaded.
    if parsed.get_backend_name() == "postgresql":
        from server.store.postgres_database import PostgresDatabase  # noqa: PLC0415
        from server.store.postgres_lock import PostgresLock  # noqa: PLC0415

        return PostgresDatabase(parsed, lock if isinstance(lock, PostgresLock) else None)
    from server.store.sqlite_database import SqliteDatabase  # noqa: PLC0415

    return SqliteDatabase(parsed)
