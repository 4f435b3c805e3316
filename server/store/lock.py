"""The lock that lets only one process run the mappings of a store."""

from __future__ import annotations

from abc import ABC, abstractmethod

from server.store.location import parsed_url


class StoreLock(ABC):
    """An exclusive lock on a store, which the end of the process releases, however it ends.

    `takeover_seconds` is how long after it was somebody else's the new holder has to wait before it may rely on it: the
    former holder has noticed by then that it lost it.
    """

    takeover_seconds: float

    @abstractmethod
    async def try_acquire(self) -> bool:
        """Take the lock if it is free, without waiting for it; True also if it is already ours.

        Raises:
            StoreUnavailableError: whether it is free can't be found out now.
            StoreError: the URL is not supported, or the lock can't be used at all.
        """

    @abstractmethod
    async def holder(self) -> str:
        """Who holds the lock, for a message: "pid 7 on host-a"; asked after `try_acquire` returned False.

        Raises:
            StoreUnavailableError: that can't be found out now.
            StoreError: the URL is not supported.
        """

    @abstractmethod
    async def check(self) -> None:
        """See that the lock is still ours.

        Raises:
            StoreUnavailableError: it is not; only `try_acquire` may bring it back.
        """

    @abstractmethod
    async def release(self) -> None:
        """Give the lock back; harmless if it is not ours."""


def lock_at(url: str) -> StoreLock:
    """The lock of the store at `url`; nothing is opened yet.

    Raises:
        StoreError: the URL can't be read, or names a database that is not supported.
    """
    parsed = parsed_url(url)
    if parsed.get_backend_name() == "postgresql":
        from server.store.postgres_lock import PostgresLock  # noqa: PLC0415 - loaded only where it is used

        return PostgresLock(parsed)
    from server.store.file_lock import FileLock  # noqa: PLC0415 - the same

    return FileLock(parsed)
