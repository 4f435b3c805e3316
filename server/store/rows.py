"""Reading and changing rows inside a transaction somebody else has begun."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from sqlalchemy import delete
from sqlmodel import Session as Transaction
from sqlmodel import col, select

from server.store.errors import ClientIdTakenError, MappingNotFoundError
from server.store.tables import EventRow, FileEntryRow, MappingRow, SessionRow

if TYPE_CHECKING:
    from collections.abc import Callable

    from server.core.mapping import Mapping
    from server.core.subscription import Session
    from server.store.stored import Origin

EVENTS_KEPT = 10_000


def mapping_row(transaction: Transaction, name: str) -> MappingRow:
    """The row of the mapping `name`.

    Raises:
        MappingNotFoundError: there is none.
    """
    row = transaction.get(MappingRow, name)
    if row is None:
        raise MappingNotFoundError(name)
    return row


def mapping_rows(transaction: Transaction) -> list[MappingRow]:
    """All mappings, by name."""
    # Sorted here, because databases don't agree on the order of text.
    return sorted(transaction.exec(select(MappingRow)), key=lambda row: row.name)


def digests(transaction: Transaction) -> dict[str, str]:
    """What the file said last time, by name of entry."""
    return {row.name: row.digest for row in transaction.exec(select(FileEntryRow))}


def insert_mapping(transaction: Transaction, spec: Mapping, origin: Origin) -> MappingRow:
    """A new row for `spec`, of generation 1."""
    now = datetime.now(UTC)
    row = MappingRow(name=spec.name, spec={}, paused=False, generation=1, origin=origin, created_at=now, updated_at=now)
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
    for session in transaction.exec(select(SessionRow).where(SessionRow.mapping == row.name)):
        session.removal_pending = True
    transaction.delete(row)


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


def cancel_removal(transaction: Transaction, client_id: str, mapping: str) -> Session | None:
    """Let `mapping` take over a session that was to be ended: not its content, so its next connection begins afresh.

    None if no removal of `client_id` was pending.
    """
    row = transaction.get(SessionRow, client_id)
    if row is None or not row.removal_pending:
        return None
    session = replace(row.session(), mapping=mapping, removal_pending=False, clean_start=True)
    transaction.merge(SessionRow.of(session))
    return session


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
