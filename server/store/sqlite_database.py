"""The connection to SQLite: how it is opened, how transactions begin, and what its errors mean."""

from __future__ import annotations

import sqlite3
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING
from urllib.parse import quote

from sqlalchemy import create_engine, event, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import StaticPool
from sqlmodel import Session

from server.store.database import Database
from server.store.errors import StoreError, StoreUnavailableError
from server.store.location import FileIdentity, check_same, check_space, create_file, database_path, identity

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from sqlalchemy import URL, Connection, Engine

    from server.store.worker import Job

# The wait for another process's lock ends this long before the call does, so that the call can say what it waited for.
_MARGIN_SECONDS = 0.25
_RETRY_SECONDS = 0.02

_DAMAGED = "is damaged, or not a SQLite database; restore a backup, or move it away to begin with an empty store"
_READ_ONLY = "can't be written to; give the service write permission on the file and its folder"
_LOCKED = "is locked by another program; end that (see `fuser`), or its transaction"
_FULL = "has no room: the disk is full; free some space on it"
_UNREACHABLE = "can't be opened; check that its folder exists and that the service may write there"
_BROKEN_DISK = "can't be read or written, the disk reports an error; check the volume"
# By the first two words of SQLite's name for the error; those with True don't mend themselves.
_MEANINGS: dict[str, tuple[bool, str]] = {
    "SQLITE_NOTADB": (True, _DAMAGED),
    "SQLITE_CORRUPT": (True, _DAMAGED),
    "SQLITE_READONLY": (True, _READ_ONLY),
    "SQLITE_PERM": (True, _READ_ONLY),
    "SQLITE_CANTOPEN": (True, _UNREACHABLE),
    "SQLITE_BUSY": (False, _LOCKED),
    "SQLITE_LOCKED": (False, _LOCKED),
    "SQLITE_FULL": (False, _FULL),
    "SQLITE_IOERR": (False, _BROKEN_DISK),
}


class SqliteDatabase(Database):
    """One connection to the SQLite file that `url` names, or to a database in memory."""

    elsewhere = "name another file in the store's URL"
    slow = "check its disk, and that nothing else holds it locked"

    def __init__(self, url: URL) -> None:
        self._path = database_path(url)
        self._opened: dict[Path, FileIdentity] = {}
        self._connection: sqlite3.Connection | None = None
        self._job: Job | None = None
        self._engine = _engine(self)

    @property
    def name(self) -> str:
        """What messages call it."""
        return "in memory" if self._path is None else str(self._path)

    def create(self, job: Job) -> None:
        """Create the file if it is missing, and see that SQLite finds it in order.

        Raises:
            StoreError: it can't be created, is not a database, or is damaged.
            StoreUnavailableError: another process has it locked.
        """
        self._job = job
        if self._path is not None:
            self._opened = {self._path: create_file(self._path)}
        with self._translated(opening=True), self._engine.connect() as connection:
            found = connection.execute(text("PRAGMA quick_check(1)")).scalar_one()
            if found != "ok":
                raise StoreError(f"the store {self.name} {_DAMAGED} ({found})")

    @contextmanager
    def transaction(self, job: Job, *, writing: bool, opening: bool = False) -> Iterator[Session]:
        """One transaction for `job`: committed at the end, rolled back on any exception.

        Raises:
            StoreUnavailableError: the database can't be used now, or the caller has given up meanwhile.
            StoreError: only with `opening`: it can't be used at all.
        """
        for path, opened in self._opened.items():
            check_same(path, opened)
        self._job = job
        with self._translated(opening=opening), self._engine.connect() as connection:
            connection.execution_options(writing=writing)
            with connection.begin(), Session(connection, expire_on_commit=False) as session:
                yield session
                session.flush()
                # What the caller was told has failed must not come true afterwards.
                if job.given_up:
                    raise job.timed_out()

    def watch_files(self) -> None:
        """From now on notice also that the write-ahead log was removed or replaced; it exists after the first write."""
        if self._path is not None:
            log = self._path.with_name(f"{self._path.name}-wal")
            # Where SQLite can't have one, as on some network file systems, it keeps a journal that comes and goes.
            if log.exists():
                self._opened[log] = identity(log)

    def check_space(self) -> None:
        """Notice a full disk.

        Raises:
            StoreUnavailableError: it is full, or can't be looked at.
        """
        if self._path is not None:
            check_space(self._path)

    def interrupt(self) -> None:
        """Make the statement under way fail; for other threads."""
        if self._connection is not None:
            self._connection.interrupt()

    def close(self) -> None:
        """Close the connection; harmless if there is none."""
        self._connection = None
        self._engine.dispose()

    def connect(self) -> sqlite3.Connection:
        """A new connection, as SQLAlchemy asks for it."""
        # mode=rw: a file that is gone must not silently become an empty one.
        source = ":memory:" if self._path is None else f"file:{quote(str(self._path))}?mode=rw"
        # isolation_level=None: the driver must not begin and commit behind our back, around DDL least of all.
        connection = sqlite3.connect(
            source, uri=True, timeout=self._remaining(), isolation_level=None, check_same_thread=False
        )
        try:
            connection.execute("PRAGMA foreign_keys = ON")
            # The store is not in the data path, so nothing is gained by less than full durability.
            connection.execute("PRAGMA synchronous = FULL")
            self._use_write_ahead_log(connection)
        except sqlite3.Error:
            # Nobody else has seen it yet, and it would keep its volume busy.
            connection.close()
            raise
        self._connection = connection
        return connection

    def _use_write_ahead_log(self, connection: sqlite3.Connection) -> None:
        # Of several that switch a fresh file at once SQLite refuses all but one without its usual wait.
        while True:
            try:
                connection.execute("PRAGMA journal_mode = WAL")
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or self._remaining() == 0:
                    raise
                time.sleep(_RETRY_SECONDS)
            else:
                return

    def _remaining(self) -> float:
        """Seconds to wait for another program's lock."""
        return 0.0 if self._job is None else max(0.0, self._job.remaining() - _MARGIN_SECONDS)

    def begin(self, connection: Connection) -> None:
        """Begin a transaction; one that will write takes the lock now, because a later upgrade can't wait for it."""
        connection.exec_driver_sql(f"PRAGMA busy_timeout = {int(self._remaining() * 1000)}")
        writing = connection.get_execution_options().get("writing", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writing else "BEGIN")

    @contextmanager
    def _translated(self, *, opening: bool) -> Iterator[None]:
        try:
            yield
        except DBAPIError as error:
            raise self._meaning(error.orig, opening=opening) from error
        except sqlite3.Error as error:
            raise self._meaning(error, opening=opening) from error

    def _meaning(self, error: BaseException | None, *, opening: bool) -> StoreError:
        name = "_".join(str(getattr(error, "sqlite_errorname", "")).split("_")[:2])
        if name == "SQLITE_INTERRUPT" and self._job is not None:
            return self._job.timed_out()
        if name == "SQLITE_IOERR":
            # Also said where the files beside the database find no room.
            try:
                self.check_space()
            except StoreUnavailableError as full:
                return full
        lasting, meaning = _MEANINGS.get(name, (True, "does not work; see what SQLite says"))
        kind = StoreError if opening and lasting else StoreUnavailableError
        return kind(f"the store {self.name} {meaning} ({error})")


def _engine(database: SqliteDatabase) -> Engine:
    engine = create_engine("sqlite://", creator=database.connect, poolclass=StaticPool)
    event.listen(engine, "begin", database.begin)
    return engine
