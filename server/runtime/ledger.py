"""The rows of a mapping's MQTT sessions, usable while the store is away: the store is never in the data path."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING

import structlog

from server.store.errors import StoreUnavailableError
from server.store.stored import SessionChange

if TYPE_CHECKING:
    from server.core.subscription import Session
    from server.store.store import Store

_log = structlog.get_logger()

# A transaction has 2 s, also on a machine that is busy with hundreds of mappings that start at once.
MOST_AT_ONCE = 50


class Ledger:
    """Sessions by client id. What the store did not take is kept and written by `flush`.

    Many mappings that start at once share a few transactions: each takes what has gathered since the last.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._rows: dict[str, Session] = {}
        self._unsaved: dict[str, SessionChange] = {}
        self._changes = 0
        self._flushing = asyncio.Lock()
        self._away = False

    async def load(self) -> None:
        """Read all rows, once, before anything runs.

        Raises:
            StoreUnavailableError: the store can't be read.
        """
        self._rows = {row.client_id: row for row in await self._store.sessions()}

    async def refresh(self) -> None:
        """Take over what the API changed: removals asked for, and removals cancelled.

        Raises:
            StoreUnavailableError: the store can't be read.
        """
        await self.flush()
        seen = self._changes
        rows = {row.client_id: row for row in await self._store.sessions()}
        if not self._unsaved and seen == self._changes:  # else what was read is older than what we know
            self._rows = rows

    def session(self, client_id: str) -> Session | None:
        """The row of this client id."""
        return self._rows.get(client_id)

    def of_mapping(self, mapping: str) -> list[Session]:
        """The sessions of a mapping, those to be removed left out."""
        return [row for row in self._rows.values() if row.mapping == mapping and not row.removal_pending]

    def owner(self, client_id: str) -> str | None:
        """Whose session this client id is, unless it is to be removed."""
        row = self._rows.get(client_id)
        return None if row is None or row.removal_pending else row.mapping

    def owners(self) -> dict[str, str]:
        """Whose session each client id is, those to be removed left out."""
        return {row.client_id: row.mapping for row in self._rows.values() if not row.removal_pending}

    def removals(self) -> list[Session]:
        """The sessions to be ended at the broker."""
        return [row for row in self._rows.values() if row.removal_pending]

    async def claim(self, client_id: str, mapping: str) -> None:
        """A mapping with this client id starts: if its session was to be ended, begin it afresh instead."""
        row = self._rows.get(client_id)
        if row is not None and (row.removal_pending or row.mapping != mapping):
            fresh = row.clean_start or row.removal_pending
            claimed = replace(row, mapping=mapping, removal_pending=False, clean_start=fresh)
            await self._change(client_id, claimed, claims=True)

    async def save(self, row: Session, *, began_afresh: bool = False) -> None:
        """Remember what was observed of the session, in the store as soon as it can be reached.

        What is wanted of it is the store's, but for a clean start that is granted if it `began_afresh`.
        """
        await self._change(row.client_id, row, began_afresh=began_afresh)

    async def forget(self, client_id: str) -> None:
        """The session does not exist any more."""
        await self._change(client_id, None)

    async def _change(
        self, client_id: str, row: Session | None, *, claims: bool = False, began_afresh: bool = False
    ) -> None:
        self._changes += 1
        if row is None:
            self._rows.pop(client_id, None)
        else:
            self._rows[client_id] = row
        before = self._unsaved.get(client_id)
        if before is not None and before.session is not None:  # of two changes the store sees only the last
            claims, began_afresh = claims or before.claims, began_afresh or before.began_afresh
        self._unsaved[client_id] = SessionChange(client_id, row, claims, began_afresh)
        await self.flush()

    async def flush(self) -> None:
        """Write what the store has not taken yet, a part at a time."""
        async with self._flushing:
            changes = list(self._unsaved.values())
            for start in range(0, len(changes), MOST_AT_ONCE):
                part = changes[start : start + MOST_AT_ONCE]
                try:
                    written = await self._store.write_sessions(part)
                except StoreUnavailableError as error:
                    self._not_saved(error)
                    return
                for change, row in zip(part, written, strict=True):
                    self._saved(change, row)
            self._away = False

    def _saved(self, change: SessionChange, row: Session | None) -> None:
        # Unless it has changed once more meanwhile.
        if self._unsaved.get(change.client_id) is change:
            del self._unsaved[change.client_id]
            if row is not None:
                self._rows[change.client_id] = row

    def _not_saved(self, error: StoreUnavailableError) -> None:
        if not self._away:  # once: hundreds of mappings would say the same
            _log.warning("sessions_not_saved", sessions=len(self._unsaved), error=str(error))
        self._away = True
