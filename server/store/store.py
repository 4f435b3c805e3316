"""The store: what is wanted of each mapping, which sessions exist, and what happened. All of it survives a crash."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from sqlmodel import Session as Transaction
from sqlmodel import col, select

from server.store import rows
from server.store.database import Database, database_at
from server.store.errors import (
    GenerationChangedError,
    MappingNotPausedError,
    NameTakenError,
    StoreUnavailableError,
)
from server.store.file_entries import FilePlan, plan_file
from server.store.location import database_path, parsed_url
from server.store.migrate import migrate
from server.store.stored import Actor, ApplyReport, Origin, SessionChange, StoredEvent, StoredMapping
from server.store.tables import EventRow, FileEntryRow, MappingRow, SessionRow
from server.store.tokens import Tokens
from server.store.worker import Worker

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from server.core.mapping import Mapping
    from server.core.subscription import Session
    from server.store.lock import StoreLock
    from server.store.worker import Job

__all__ = ["ApplyReport", "Store", "StoredEvent", "StoredMapping"]

CALL_SECONDS = 2.0
# Opening checks the whole file, and applying may write thousands of mappings; nobody is served meanwhile.
START_SECONDS = 30.0
# What is under way may be a connection to a server that does not answer, which can't be interrupted.
CLOSE_SECONDS = 5.0

Result = TypeVar("Result")


class Store:
    """The store at `url`; `client_id_of` tells the effective MQTT client id of a mapping, "" if it has none.

    With a `lock` that is kept in the database, only opening writes while that is not held.

    Every call may raise StoreUnavailableError: the store is not open, does not answer within 2 s, or can't be used
    now. A call that raised changed nothing, unless it says that it may have: a server that goes away while it commits
    leaves that open. A caller that is cancelled does not know whether its change was made.
    """

    def __init__(self, url: str, *, client_id_of: Callable[[Mapping], str], lock: StoreLock | None = None) -> None:
        self._url = url
        self._lock = lock
        self._client_id_of = client_id_of
        self._open: tuple[Database, Worker] | None = None
        # Rises with every change that was made through this store: what was read at the same revision is still so.
        self.revision = 0
        self.tokens = Tokens(self._read, self._write)

    @property
    def remote(self) -> bool:
        """Whether its server may be started later than this process, so that a start waits for it.

        Raises:
            StoreError: the URL can't be read, or names a database that is not supported.
        """
        return parsed_url(self._url).get_backend_name() != "sqlite"

    @property
    def is_open(self) -> bool:
        """Whether `open` has succeeded."""
        return self._open is not None

    async def open(self) -> None:
        """Create the database and its folder if missing, check it, and bring it to this version's schema.

        Raises:
            StoreError: it can't be used; the message says why, and what to do.
        """
        database = database_at(self._url, self._lock)
        worker = Worker(database.interrupt, database.slow)

        def prepare(job: Job) -> None:
            database.create(job)
            with database.transaction(job, writing=True, opening=True) as transaction:
                migrate(transaction.connection(), database.name, database.elsewhere)
                rows.check_mappings(transaction)
                # The proof that writing works, before anything is promised.
                rows.beat(transaction)
            database.watch_files()

        try:
            await worker.run(prepare, limit=START_SECONDS)
        except BaseException:
            await self._shut(database, worker)
            raise
        self._open = database, worker

    def exists(self) -> bool:
        """Whether there is a database already, which `open` would not have to create; a server is taken to have it.

        Raises:
            StoreError: the URL can't be used.
        """
        if self.remote:
            return True
        path = database_path(parsed_url(self._url))
        return path is not None and path.exists()

    def forget_revision(self) -> None:
        """Another process may have written: what was read before may not be so any more."""
        self.revision += 1

    async def close(self) -> None:
        """Finish what is under way and close the database; harmless if it is not open."""
        if self._open is not None:
            database, worker = self._open
            self._open = None
            await self._shut(database, worker)

    async def ping(self) -> None:
        """See that the store can be written to, by writing to it.

        Raises:
            StoreUnavailableError: it can't: removed or replaced, read-only, full, locked, or too slow.
        """
        database = self._opened()[0]

        def beat(transaction: Transaction) -> None:
            database.check_space()
            rows.beat(transaction)

        await self._run(beat, writing=True, limit=CALL_SECONDS)

    async def mappings(self) -> list[StoredMapping]:
        """All mappings, by name."""
        return await self._read(lambda transaction: [row.stored() for row in rows.mapping_rows(transaction)])

    async def mapping(self, name: str) -> StoredMapping:
        """The mapping `name`.

        Raises:
            MappingNotFoundError: there is none.
        """
        return await self._read(lambda transaction: rows.mapping_row(transaction, name).stored())

    async def create(self, spec: Mapping, *, origin: Origin = "api", actor: Actor = "api") -> StoredMapping:
        """Create a mapping. Its generation is 1, or follows that of the last mapping of this name.

        Raises:
            NameTakenError: there is one of this name.
            ClientIdTakenError: another mapping has its MQTT client id.
        """

        def insert(transaction: Transaction) -> StoredMapping:
            if transaction.get(MappingRow, spec.name) is not None:
                raise NameTakenError(spec.name)
            rows.check_client_id(transaction, spec, self._client_id_of)
            row = rows.insert_mapping(transaction, spec, origin)
            self._took_client_id(transaction, spec)
            self._changed(transaction, row, actor=actor, action="create")
            return row.stored()

        return await self._write(insert)

    async def change(
        self,
        name: str,
        edit: Callable[[Mapping], Mapping],
        *,
        expected: int | None,
        action: str,
        actor: Actor = "api",
        detail: dict[str, Any] | None = None,
        anew: bool = False,
    ) -> StoredMapping:
        """Replace the mapping `name` by what `edit` makes of it, and raise its generation.

        An edit that changes nothing leaves the generation and writes no event, unless the mapping shall start `anew`.
        `edit` runs in another thread, inside the transaction, and may raise: then nothing changes. The event holds
        `detail` and the new generation.

        Raises:
            MappingNotFoundError: there is none.
            GenerationChangedError: it has another generation than `expected`.
            ClientIdTakenError: another mapping has the MQTT client id that it would get.
            ValueError: `edit` changed the name.
        """

        def replace(transaction: Transaction) -> StoredMapping:
            row = rows.mapping_row(transaction, name)
            if expected is not None and row.generation != expected:
                raise GenerationChangedError(name, expected=expected, actual=row.generation)
            before = row.stored()
            spec = edit(before.spec)
            if spec.name != name:
                raise ValueError(f"the name of the mapping {name!r} can't be changed to {spec.name!r}")
            if spec == before.spec and not anew:
                return before
            # Unchanged ids are let pass: a clash that a changed base brought about must not keep one from pausing.
            if self._client_id_of(spec) != self._client_id_of(before.spec):
                rows.check_client_id(transaction, spec, self._client_id_of)
            rows.raise_generation(row, spec)
            self._took_client_id(transaction, spec)
            self._changed(transaction, row, actor=actor, action=action, detail=detail)
            return row.stored()

        return await self._write(replace)

    async def delete(self, name: str, *, expected: int | None, actor: Actor = "api") -> None:
        """Delete the mapping `name`; its sessions are marked to be ended at the broker.

        Raises:
            MappingNotFoundError: there is none.
            GenerationChangedError: it has another generation than `expected`.
        """

        def remove(transaction: Transaction) -> None:
            row = rows.mapping_row(transaction, name)
            if expected is not None and row.generation != expected:
                raise GenerationChangedError(name, expected=expected, actual=row.generation)
            self._remove(transaction, row, actor)

        await self._write(remove)

    async def deleted_by_file(self, entries: Sequence[tuple[Mapping, str]], *, prune: bool) -> dict[str, list[str]]:
        """What `apply_file` with the same arguments would delete: names, each with the client ids of its sessions.

        Raises:
            ValueError: two entries have the same name.
        """

        def read(transaction: Transaction) -> dict[str, list[str]]:
            found = {row.name: row for row in rows.mapping_rows(transaction)}
            plan = self._plan(transaction, entries, found, prune=prune)
            return {name: rows.client_ids(transaction, found[name], self._client_id_of) for name in plan.deleted}

        return await self._run(read, writing=False, limit=START_SECONDS)

    async def apply_file(self, entries: Sequence[tuple[Mapping, str]], *, prune: bool) -> ApplyReport:
        """Bring the store in line with the configuration file's `entries`, each with its digest, all or nothing.

        New and changed entries are written, but what the API made of unchanged ones stays. Mappings that came from
        the file and are not in it any more are deleted, or with `prune` false paused. Takes 30 s at most.

        Raises:
            ValueError: two entries have the same name.
        """

        def apply(transaction: Transaction) -> ApplyReport:
            found = {row.name: row for row in rows.mapping_rows(transaction)}
            plan = self._plan(transaction, entries, found, prune=prune)
            for name in plan.deleted:
                self._remove(transaction, found.pop(name), "file")
            for name in plan.paused:
                row = found[name]
                rows.raise_generation(row, row.stored().spec.model_copy(update={"paused": True}))
                self._changed(
                    transaction, row, actor="file", action="pause", detail={"reason": "removed from the file"}
                )
            for name in plan.created:
                found[name] = rows.insert_mapping(transaction, plan.specs[name], "file")
                self._changed(transaction, found[name], actor="file", action="create")
            for name in plan.replaced:
                rows.raise_generation(found[name], plan.specs[name])
                self._changed(transaction, found[name], actor="file", action="change")
            for name in plan.forgotten:
                transaction.delete(transaction.get_one(FileEntryRow, name))
            for name, digest in plan.digests.items():
                transaction.merge(FileEntryRow(name=name, digest=digest))
            for row in found.values():
                self._took_client_id(transaction, row.stored().spec)
            return ApplyReport(
                created=tuple(plan.created),
                replaced=tuple(plan.replaced),
                unchanged=tuple(plan.unchanged),
                deleted=tuple(plan.deleted),
                paused=tuple(plan.paused),
                skipped=tuple(plan.skipped),
                warnings=tuple(plan.warnings),
            )

        return await self._write(apply, limit=START_SECONDS)

    async def events(self, *, limit: int, before: int | None = None) -> list[StoredEvent]:
        """The newest `limit` events, newest first; with `before`, only those with a smaller id."""

        def read(transaction: Transaction) -> list[StoredEvent]:
            query = select(EventRow).order_by(col(EventRow.id).desc()).limit(limit)
            if before is not None:
                query = query.where(col(EventRow.id) < before)
            return [row.stored() for row in transaction.exec(query)]

        return await self._read(read)

    async def sessions(self) -> list[Session]:
        """All sessions, by client id."""

        def read(transaction: Transaction) -> list[Session]:
            found = [row.session() for row in transaction.exec(select(SessionRow))]
            return sorted(found, key=lambda session: session.client_id)

        return await self._read(read)

    async def session(self, client_id: str) -> Session | None:
        """The session of `client_id`; None if there is none."""

        def read(transaction: Transaction) -> Session | None:
            row = transaction.get(SessionRow, client_id)
            return None if row is None else row.session()

        return await self._read(read)

    async def write_sessions(self, changes: Sequence[SessionChange]) -> list[Session | None]:
        """Remember what was observed of sessions, all of it or nothing, and return their rows as they are now.

        Raises:
            ValueError: one has no client id; such a session ends with its connection.
        """
        if not all(change.client_id for change in changes):
            raise ValueError("a session without a client id is not durable and has no row")
        return await self._write(lambda transaction: [rows.write_session(transaction, change) for change in changes])

    async def reset_sessions(self, mapping: str, *, detail: dict[str, Any], actor: Actor = "api") -> None:
        """Ask for all sessions of a paused mapping to be ended at the broker; the event holds `detail`.

        Raises:
            MappingNotFoundError: there is no such mapping.
            MappingNotPausedError: it is not paused (any more).
        """

        def reset(transaction: Transaction) -> None:
            if not rows.mapping_row(transaction, mapping).paused:
                raise MappingNotPausedError(mapping)
            rows.end_sessions(transaction, mapping)
            rows.record_event(transaction, actor=actor, action="reset session", mapping=mapping, detail=detail)

        await self._write(reset)

    def _plan(
        self,
        transaction: Transaction,
        entries: Sequence[tuple[Mapping, str]],
        found: dict[str, MappingRow],
        *,
        prune: bool,
    ) -> FilePlan:
        return plan_file(
            entries,
            stored={name: row.stored() for name, row in found.items()},
            digests=rows.digests(transaction),
            client_id_of=self._client_id_of,
            prune=prune,
        )

    def _took_client_id(self, transaction: Transaction, spec: Mapping) -> None:
        rows.cancel_removal(transaction, self._client_id_of(spec), spec.name)

    def _remove(self, transaction: Transaction, row: MappingRow, actor: Actor) -> None:
        client_ids = rows.client_ids(transaction, row, self._client_id_of)
        self._changed(transaction, row, actor=actor, action="delete", detail={"client_ids": client_ids})
        rows.delete_mapping(transaction, row)

    def _changed(
        self,
        transaction: Transaction,
        row: MappingRow,
        *,
        actor: Actor,
        action: str,
        detail: dict[str, Any] | None = None,
    ) -> None:
        rows.record_event(
            transaction,
            actor=actor,
            action=action,
            mapping=row.name,
            detail={**(detail or {}), "generation": row.generation},
        )

    def _opened(self) -> tuple[Database, Worker]:
        if self._open is None:
            raise StoreUnavailableError("the store is not open")
        return self._open

    async def _read(self, work: Callable[[Transaction], Result]) -> Result:
        return await self._run(work, writing=False, limit=CALL_SECONDS)

    async def _write(self, work: Callable[[Transaction], Result], *, limit: float = CALL_SECONDS) -> Result:
        def work_and_trim(transaction: Transaction) -> Result:
            result = work(transaction)
            if any(isinstance(row, EventRow) for row in transaction.new):
                transaction.flush()
                rows.trim_events(transaction)
            return result

        try:
            return await self._run(work_and_trim, writing=True, limit=limit)
        finally:
            self.revision += 1  # also if the caller gave up: who reads now reads behind it

    async def _run(self, work: Callable[[Transaction], Result], *, writing: bool, limit: float) -> Result:
        database, worker = self._opened()

        def in_transaction(job: Job) -> Result:
            with database.transaction(job, writing=writing) as transaction:
                return work(transaction)

        return await worker.run(in_transaction, limit=limit)

    async def _shut(self, database: Database, worker: Worker) -> None:
        try:
            await worker.run(lambda _: database.close(), limit=CLOSE_SECONDS)
        finally:
            worker.stop()
