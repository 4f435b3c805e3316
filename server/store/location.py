"""Where the store is: what its URL says, and the file behind it."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from server.store.errors import StoreError, StoreUnavailableError

_FORM = (
    "give a URL like sqlite:////data/mkf.db (absolute), sqlite:///data/mkf.db (relative)"
    " or postgresql+psycopg://user:password@host:5432/database"
)
_SQLITE = {"sqlite", "sqlite+pysqlite"}
_POSTGRES = {"postgresql", "postgresql+psycopg"}
# Less than this is not enough for the next checkpoint, though a small write may still find room in the old log.
_LEAST_FREE_BYTES = 128 * 1024


@dataclass(frozen=True, slots=True)
class FileIdentity:
    """Which file a path named, so that a replaced one is noticed."""

    device: int
    inode: int


def parsed_url(url: str) -> URL:
    """The parts of the store's URL.

    Raises:
        StoreError: it can't be read, or names a database that is not supported.
    """
    # The URL itself is left out of the messages: it may hold a password.
    try:
        # Others call it postgres://, which SQLAlchemy does not know.
        parsed = make_url(url.replace("postgres://", "postgresql://", 1) if url.startswith("postgres://") else url)
    except (ArgumentError, ValueError):
        raise StoreError(f"the store's URL can't be read; {_FORM}") from None
    if parsed.drivername not in _SQLITE | _POSTGRES:
        raise StoreError(f"the store's URL names {parsed.drivername!r}, which is not supported; {_FORM}")
    if parsed.drivername in _POSTGRES and not parsed.database:
        raise StoreError(f"the store's URL names no database; {_FORM}")
    if parsed.drivername in _POSTGRES and find_spec("psycopg") is None:
        raise StoreError("the store's URL names Postgres, which needs psycopg: install mqtt-kafka-forwarder[postgres]")
    return parsed


def database_path(url: URL) -> Path | None:
    """The absolute path of the SQLite file `url` names, links resolved; None means in memory.

    Raises:
        StoreError: the URL says more than that.
    """
    if url.query:
        raise StoreError(f"options in the URL of a store in SQLite are not supported ({', '.join(url.query)}); {_FORM}")
    if url.host:
        raise StoreError(f"the store's URL names a host, {url.host!r}; SQLite's has three slashes: {_FORM}")
    if url.database in {None, "", ":memory:"}:
        return None
    return Path(os.path.realpath(str(url.database)))


def create_folder(path: Path) -> None:
    """Create the folder of the file `path`, if it is missing.

    Raises:
        StoreError: it can't be created.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(
            f"the folder {path.parent} for the store can't be created: {error.strerror};"
            " create it and let the service write to it, or name another folder in the store's URL"
        ) from error


def create_file(path: Path) -> FileIdentity:
    """Create the file `path` and its folder, unless they exist.

    Raises:
        StoreError: the file can't be created, or something else than a file has its name.
    """
    create_folder(path)
    # Only ever a new file is opened here: closing a database file drops the locks SQLite holds on it in this process.
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))
    except FileExistsError:
        if not stat.S_ISREG(path.stat().st_mode):
            raise StoreError(f"the store {path} is not a file; name a file in the store's URL") from None
    except OSError as error:
        raise StoreError(
            f"the store {path} can't be created: {error.strerror}; let the service write to the folder {path.parent},"
            " or name another one in the store's URL"
        ) from error
    return identity(path)


def identity(path: Path) -> FileIdentity:
    """Which file `path` names now.

    Raises:
        StoreUnavailableError: none, or it can't be looked at.
    """
    try:
        found = path.stat()
    except FileNotFoundError:
        raise StoreUnavailableError(
            f"the store's file {path} was removed while in use; put it back, or restart the service to do without it"
        ) from None
    except OSError as error:
        raise StoreUnavailableError(
            f"the store {path} can't be reached: {error.strerror}; check its volume and permissions"
        ) from error
    return FileIdentity(found.st_dev, found.st_ino)


def check_same(path: Path, opened: FileIdentity) -> None:
    """Notice that `path` is not the file that was opened: what is written to that one would be lost.

    Raises:
        StoreUnavailableError: the file was removed or replaced, or can't be looked at.
    """
    if identity(path) != opened:
        raise StoreUnavailableError(
            f"the store's file {path} was replaced by another file while in use; restart the service to use the new one"
        )


def check_space(path: Path) -> None:
    """Notice a full disk before a write that needs more room than the last one does.

    Raises:
        StoreUnavailableError: the disk is full, or can't be looked at.
    """
    try:
        disk = os.statvfs(path)
    except OSError as error:
        raise StoreUnavailableError(
            f"the store {path} can't be reached: {error.strerror}; check its volume and permissions"
        ) from error
    # Root may use the blocks that are reserved for it.
    free = disk.f_bfree if os.geteuid() == 0 else disk.f_bavail
    if free * disk.f_frsize < _LEAST_FREE_BYTES:
        raise StoreUnavailableError(f"the disk of the store {path} is full; free some space on it")
