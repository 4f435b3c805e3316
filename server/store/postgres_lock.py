"""The lock of a store in Postgres: an advisory lock, held by a session of its own."""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import psycopg

from server.store.errors import StoreUnavailableError
from server.store.lock import StoreLock
from server.store.postgres import SLOW, PostgresServer, PostgresSession, lock_key
from server.store.worker import Worker

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from datetime import datetime

    from sqlalchemy import URL

    from server.store.worker import Job

Result = TypeVar("Result")

LIMIT_SECONDS = 2.0
# What is under way may be a connection to a server that does not answer, which can't be interrupted.
_CLOSE_SECONDS = 5.0
_RETRY_SECONDS = 0.05
_RUNNING = 0  # number of the advisory lock that the process which runs the mappings holds

# Numbers and not parameters, so that it can stand in a statement of the store's connection too.
_HELD = (
    "SELECT l.pid, a.application_name, a.client_addr, a.backend_start"
    " FROM pg_catalog.pg_locks l LEFT JOIN pg_catalog.pg_stat_activity a ON a.pid = l.pid"
    " WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 2 AND l.classid = {number} AND l.objid = {key}"
    " AND l.database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = current_database())"
)


class PostgresLock(StoreLock):
    """The lock is a session's, and goes with it: if the server restarts, or the connection breaks, it is lost.

    See docs/decisions/0017-postgres-lock.md for what follows from that.
    """

    # The former holder looks every second, is told within 2 s, and then stops.
    takeover_seconds = 5.0

    def __init__(self, url: URL) -> None:
        self._server = PostgresServer(url)
        self._worker: Worker | None = None
        self._session: PostgresSession | None = None
        self._proof: str | None = None
        self._reached = False
        # The session that had the lock last, as Postgres tells sessions apart.
        self._own: tuple[int, datetime] | None = None

    async def try_acquire(self) -> bool:
        """Take the lock if it is free, without waiting for it; True also if it is already ours.

        Raises:
            StoreUnavailableError: the server can't be reached, or does not answer within 2 s.
            StoreError: it does not let us in.
        """
        return await self._run(self._acquire)

    async def holder(self) -> str:
        """Who holds the lock, for a message: "mkf pid 7 on host-a at 10.0.0.7".

        Raises:
            StoreUnavailableError: the server can't be reached, or does not answer within 2 s.
        """
        return await self._run(self._name_of_holder)

    async def check(self) -> None:
        """See that the lock is still ours.

        Raises:
            StoreUnavailableError: it is not, or the server does not answer within 2 s, which ends our session.
        """
        await self._run(self._still_held)

    def proof(self) -> str | None:
        """A query for any session of this database that is true as long as the lock is ours; None if it is not."""
        return self._proof

    async def release(self) -> None:
        """Give the lock back; harmless if it is not ours."""
        if self._worker is not None:
            worker, self._worker = self._worker, None
            try:
                await worker.run(lambda _: self._lose(), limit=_CLOSE_SECONDS)
            finally:
                worker.stop()

    async def _run(self, work: Callable[[PostgresSession, Job], Result]) -> Result:
        if self._worker is None:
            self._worker = Worker(self._interrupt, SLOW)

        def on_session(job: Job) -> Result:
            with self._translated(job):
                if self._session is None:
                    self._session = self._server.connect(autocommit=True)
                    self._reached = True
                return work(self._session, job)

        return await self._worker.run(on_session, limit=LIMIT_SECONDS)

    def _acquire(self, session: PostgresSession, job: Job) -> bool:
        number, key = lock_key(_RUNNING, session)
        while True:
            if self._holds(session):
                return True
            if _one(session, f"SELECT pg_try_advisory_lock({number}, {key})") == (True,):
                self._note(session)
                return True
            # Our own former session, of which the server does not know yet that nobody is at its other end.
            pid, _, _, started = self._held(session) or (0, None, None, None)
            if self._own != (pid, started) or job.remaining() < _RETRY_SECONDS:
                return False
            _one(session, f"SELECT pg_terminate_backend({pid})")
            time.sleep(_RETRY_SECONDS)

    def _note(self, session: PostgresSession) -> None:
        pid, _, _, started = self._held(session) or (0, None, None, None)
        if pid != session.connection.info.backend_pid:
            raise StoreUnavailableError(
                f"the store {self._server.name} does not keep our lock: a connection pooler that shares sessions can't"
                " be used; name the server itself in the store's URL"
            )
        number, key = lock_key(_RUNNING, session)
        self._own = pid, started
        self._proof = f"SELECT EXISTS ({_HELD.format(number=number, key=key)} AND l.pid = {pid})"

    def _still_held(self, session: PostgresSession, _: Job) -> None:
        if not self._holds(session):
            raise StoreUnavailableError(f"the store {self._server.name} has lost the session that held our lock")

    def _holds(self, session: PostgresSession) -> bool:
        held = self._held(session)
        return held is not None and (held[0], held[3]) == self._own and held[0] == session.connection.info.backend_pid

    def _held(self, session: PostgresSession) -> tuple[Any, ...] | None:
        number, key = lock_key(_RUNNING, session)
        return _one(session, _HELD.format(number=number, key=key))

    def _name_of_holder(self, session: PostgresSession, _: Job) -> str:
        _, name, address, _ = self._held(session) or (0, None, None, None)
        # Sessions of other users are shown without their names.
        return f"{name or 'another process'}{f' at {address}' if address else ''}"

    def _interrupt(self) -> None:
        session = self._session
        if session is not None:
            session.interrupt()

    def _lose(self) -> None:
        self._proof = None
        if self._session is not None:
            self._session.close()
            self._session = None

    @contextmanager
    def _translated(self, job: Job) -> Iterator[None]:
        try:
            yield
        except psycopg.Error as error:
            self._lose()
            # Once it has worked, nothing is for ever: the mappings go on meanwhile.
            meaning = self._server.meaning(error, opening=not self._reached)
            raise (job.timed_out() if job.given_up else meaning) from error
        except StoreUnavailableError:
            self._lose()
            raise


def _one(session: PostgresSession, query: str) -> tuple[Any, ...] | None:
    with session.connection.cursor() as cursor:
        cursor.execute(query)
        return cursor.fetchone()
