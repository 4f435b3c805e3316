"""A store in Postgres: its one connection, its transactions, and what becomes of those that break."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import psycopg
from sqlalchemy import create_engine, event
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import QueuePool
from sqlmodel import Session

from server.store.database import Database
from server.store.errors import StoreError, StoreUnavailableError
from server.store.postgres import ELSEWHERE, SLOW, PostgresServer, PostgresSession, lock_key

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from sqlalchemy import URL, Connection, Engine

    from server.store.postgres_lock import PostgresLock
    from server.store.worker import Job

# The server's limits end this long before the call does, so that the call can say what it waited for.
_MARGIN_SECONDS = 0.25
# A wait for a lock ends before the statement does, which would say less.
_LOCK_MARGIN_SECONDS = 0.05
# Of a process that hangs in the middle of a transaction; it must not keep the others from writing.
_IDLE_SECONDS = 5.0
_WRITERS = 1  # number of the advisory lock that a writing transaction holds
_QUERY_CANCELLED = "57014"


class PostgresDatabase(Database):
    """One connection to the Postgres database that `url` names; one that broke is replaced at the next transaction.

    With `lock` nothing is written, but at opening, while that is not held.
    """

    elsewhere = ELSEWHERE
    slow = SLOW

    def __init__(self, url: URL, lock: PostgresLock | None) -> None:
        self._server = PostgresServer(url)
        self._lock = lock
        self._session: PostgresSession | None = None
        self._job: Job | None = None
        # A commit was sent, and no answer came: the next transaction waits until it is decided.
        self._undecided = False
        self._engine = _engine(self)

    @property
    def name(self) -> str:
        """What messages call it."""
        return self._server.name

    def create(self, job: Job) -> None:
        """See that the database is there, and can hold every text.

        Raises:
            StoreError: we are not let in, it does not exist, has no schema, or another encoding than UTF-8.
            StoreUnavailableError: it can't be reached.
        """
        self._job = job
        with self._translated(opening=True), self._engine.connect():
            session = self._session
        assert session is not None  # noqa: S101 - there is a connection, so there is a session
        if session.encoding != "UTF8":
            raise StoreError(
                f"the store {self.name} has the encoding {session.encoding}, which can't hold every text;"
                f" create it with ENCODING 'UTF8', or {ELSEWHERE}"
            )
        if session.schema is None:
            raise StoreError(f"the store {self.name} has no schema to use: create it, or {ELSEWHERE}")

    @contextmanager
    def transaction(self, job: Job, *, writing: bool, opening: bool = False) -> Iterator[Session]:
        """One transaction for `job`: committed at the end, rolled back on any exception.

        Raises:
            StoreUnavailableError: the database can't be used now, or the caller has given up meanwhile. If the
                connection broke in the middle of the commit, it says that the change may have been made.
            StoreError: only with `opening`: it can't be used at all.
        """
        self._job = job
        with self._translated(opening=opening), self._engine.connect() as connection:
            connection.execution_options(writing=writing, opening=opening)
            with connection.begin(), Session(connection, expire_on_commit=False) as session:
                yield session
                session.flush()
                job.committing = writing
                # What the caller was told has failed must not come true afterwards.
                if job.given_up:
                    raise job.timed_out()
                self._undecided = writing
            self._undecided = False

    def interrupt(self) -> None:
        """Break the connection; for other threads. The server ends the statement by the limit it was given."""
        session = self._session
        if session is not None:
            session.interrupt()

    def close(self) -> None:
        """Close the connection; harmless if there is none."""
        self._engine.dispose()
        self._drop()

    def connect(self) -> psycopg.Connection[Any]:
        """A new connection, as SQLAlchemy asks for it."""
        self._drop()
        self._session = self._server.connect()
        return self._session.connection

    def _drop(self) -> None:
        if self._session is not None:
            self._session.close()
            self._session = None

    def begin(self, connection: Connection) -> None:
        """Begin a transaction: with limits of its own, and one that will write after all others that did."""
        job, session = self._job, self._session
        assert job is not None  # noqa: S101 - `transaction` has set both
        assert session is not None  # noqa: S101
        # Connecting may have taken all the time there was.
        if job.given_up:
            raise job.timed_out()
        options = connection.get_execution_options()
        writing = options.get("writing", False)
        milliseconds = max(100, int((job.remaining() - _MARGIN_SECONDS) * 1000))
        mode = "READ COMMITTED" if writing or self._undecided else "REPEATABLE READ, READ ONLY"
        connection.exec_driver_sql(f"SET TRANSACTION ISOLATION LEVEL {mode}")
        connection.exec_driver_sql(
            f"SET LOCAL statement_timeout = {milliseconds};"
            f" SET LOCAL lock_timeout = {milliseconds - int(_LOCK_MARGIN_SECONDS * 1000)};"
            f" SET LOCAL idle_in_transaction_session_timeout = {milliseconds + int(_IDLE_SECONDS * 1000)}"
        )
        if writing or self._undecided:
            number, key = lock_key(_WRITERS, session)
            connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({number}, {key})")
            self._undecided = False
        if writing and not options.get("opening", False):
            self._check_lock(connection)

    def _check_lock(self, connection: Connection) -> None:
        # After the wait for other writers: whoever has the lock next writes first, and so waits for this transaction.
        if self._lock is None:
            return
        proof = self._lock.proof()
        if proof is None or not connection.exec_driver_sql(proof).scalar():
            raise StoreUnavailableError(
                f"the store {self.name} is not this process's at the moment: its lock was lost and is being taken again"
            )

    @contextmanager
    def _translated(self, *, opening: bool) -> Iterator[None]:
        try:
            yield
        except DBAPIError as error:
            raise self._meaning(error.orig, opening=opening) from error
        except psycopg.Error as error:
            raise self._meaning(error, opening=opening) from error

    def _meaning(self, error: BaseException | None, *, opening: bool) -> StoreError:
        job = self._job
        assert job is not None  # noqa: S101 - whatever fails here was done for one
        if job.committing and self._session is not None and not self._session.broken:
            job.committing = self._undecided = False  # the server has said no
        if job.given_up or getattr(error, "sqlstate", None) == _QUERY_CANCELLED:
            return job.timed_out()
        return self._server.meaning(error, opening=opening, undecided=job.committing)


def _engine(database: PostgresDatabase) -> Engine:
    # An error of the connection makes the pool replace it; asking first finds out about one that broke meanwhile.
    engine = create_engine(
        "postgresql+psycopg://",
        creator=database.connect,
        poolclass=QueuePool,
        pool_size=1,
        max_overflow=0,
        pool_pre_ping=True,
        use_native_hstore=False,
    )
    event.listen(engine, "begin", database.begin)
    return engine
