"""Reading and changing rows inside a transaction somebody else has begun."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from sqlalchemy import bindparam, delete, update
from sqlmodel import Session as Transaction
from sqlmodel import col, select

from server.store.errors import ClientIdTakenError, MappingNotFoundError
from server.store.tables import (
    DeletedMappingRow,
    EventRow,
    FileEntryRow,
    HeartbeatRow,
    MappingRow,
    SessionRow,
    not_understood,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from server.core.mapping import Mapping
    from server.core.subscription import Session
    from server.store.stored import Origin, SessionChange

_BEAT = update(HeartbeatRow).values(at=bindparam("now"))

EVENTS_KEPT = 10_000


def mapping_row(transaction: Transaction, name: str) -> MappingRow:
    """The row of the mapping `name`.

    Raises:
        MappingNotFoundError: there is none.
    """
    # No mapping has U+0000 in its name, and Postgres refuses to look.
    row = None if "\0" in name else transaction.get(MappingRow, name)
    if row is None:
        raise MappingNotFoundError(name)
    return row


def mapping_rows(transaction: Transaction) -> list[MappingRow]:
    """All mappings, by name."""
    # Sorted here, because databases don't agree on the order of text.
    return sorted(transaction.exec(select(MappingRow)), key=lambda row: row.name)


def check_mappings(transaction: Transaction) -> None:
    """See that this version understands every mapping.

    Raises:
        StoreError: there is one that it does not.
    """
    try:
        found = mapping_rows(transaction)
    except ValueError as error:  # where the database does not see to it that JSON is JSON, and a date a date
        raise not_understood("a stored mapping", f"its row can't be read ({error})") from error
    for row in found:
        row.stored()


def digests(transaction: Transaction) -> dict[str, str]:
    """What the file said last time, by name of entry."""
    return {row.name: row.digest for row in transaction.exec(select(FileEntryRow))}


def insert_mapping(transaction: Transaction, spec: Mapping, origin: Origin) -> MappingRow:
    """A new row for `spec`.

    Its generation follows that of the last mapping of this name: it must not pass for the one that is gone, neither in
    an ETag somebody kept nor for a forwarder that still runs.
    """
    now = datetime.now(UTC)
    gone = transaction.get(DeletedMappingRow, spec.name)
    row = MappingRow(
        name=spec.name,
        spec={},
        paused=False,
        generation=1 if gone is None else gone.generation + 1,
        origin=origin,
        created_at=now,
        updated_at=now,
    )
    row.keep(spec)
    transaction.add(row)
    return row


def raise_generation(row: MappingRow, spec: Mapping) -> None:
    """Let `row` be `spec` from now on."""
    row.keep(spec)
    row.generation += 1
    row.updated_at = datetime.now(UTC)


def delete_mapping(transaction: Transaction, row: MappingRow) -> None:
    """Delete the mapping, and ask for its sessions to be ended at the broker."""
    end_sessions(transaction, row.name)
    transaction.merge(DeletedMappingRow(name=row.name, generation=row.generation))
    transaction.delete(row)


def client_ids(transaction: Transaction, row: MappingRow, client_id_of: Callable[[Mapping], str]) -> list[str]:
    """The client ids of the mapping's sessions; the one that it would have where it never had a session.

    Not computed from what the mapping says now: `mqtt.client_id` or its own id may have changed since.
    """
    found = transaction.exec(select(SessionRow.client_id).where(SessionRow.mapping == row.name)).all()
    return sorted(found) or [client_id for client_id in (client_id_of(row.stored().spec),) if client_id]


def end_sessions(transaction: Transaction, mapping: str) -> None:
    """Ask for all sessions of this mapping to be ended at the broker."""
    for session in transaction.exec(select(SessionRow).where(SessionRow.mapping == mapping)):
        session.removal_pending = True


def write_session(transaction: Transaction, change: SessionChange) -> Session | None:
    """Write what was observed of a session beside what is wanted of it; see SessionChange."""
    row = transaction.get(SessionRow, change.client_id)
    session = change.session
    if session is None:
        if row is not None:
            transaction.delete(row)
        return None
    if not change.claims:
        if row is not None:
            wanted = row.session()
            session = replace(
                session,
                mapping=wanted.mapping,
                removal_pending=wanted.removal_pending,
                clean_start=wanted.clean_start and not change.began_afresh,
            )
        elif transaction.get(MappingRow, session.mapping) is None:
            session = replace(session, removal_pending=True)
    transaction.merge(SessionRow.of(session))
    return session


def check_client_id(transaction: Transaction, spec: Mapping, client_id_of: Callable[[Mapping], str]) -> None:
    """See that no other mapping has the client id of `spec`; those without one never clash.

    Raises:
        ClientIdTakenError: another has it.
    """
    client_id = client_id_of(spec)
    if not client_id:
        return
    for row in mapping_rows(transaction):
        if row.name != spec.name and client_id_of(row.stored().spec) == client_id:
            raise ClientIdTakenError(client_id, row.name)


def cancel_removal(transaction: Transaction, client_id: str, mapping: str) -> None:
    """Let `mapping` take over a session that was to be ended: not its content, so its next connection begins afresh."""
    row = transaction.get(SessionRow, client_id)
    if row is not None and row.removal_pending:
        row.mapping, row.removal_pending, row.clean_start = mapping, False, True


def record_event(transaction: Transaction, *, actor: str, action: str, mapping: str, detail: dict[str, Any]) -> None:
    """Write an event."""
    transaction.add(EventRow(at=datetime.now(UTC), actor=actor, action=action, mapping=mapping, detail=detail))


def trim_events(transaction: Transaction) -> None:
    """Delete the oldest events beyond the EVENTS_KEPT that are kept."""
    # By counting and not by arithmetic on ids, which have gaps in some databases.
    newest = select(EventRow.id).order_by(col(EventRow.id).desc())
    oldest_kept = transaction.exec(newest.offset(EVENTS_KEPT - 1).limit(1)).first()
    if oldest_kept is not None:
        transaction.exec(delete(EventRow).where(col(EventRow.id) < oldest_kept))


def beat(transaction: Transaction) -> None:
    """Write that writing works.

    Past the session, which would read the row before and compare: this is done all the time, also when nothing else is.
    """
    now = datetime.now(UTC)
    if transaction.connection().execute(_BEAT, {"now": now}).rowcount == 0:
        transaction.add(HeartbeatRow(at=now))
