"""The API tokens in the store: made, listed, revoked, and when each was last used."""

from __future__ import annotations

import secrets
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from sqlalchemy import or_, update
from sqlmodel import Session as Transaction
from sqlmodel import col, select

from server.core.tokens import SECRET_BYTES, check_name, hash_of, new_token
from server.store import rows
from server.store.errors import TokenNameTakenError, TokenNotFoundError
from server.store.tables import TokenRow

if TYPE_CHECKING:
    from collections.abc import Callable
    from collections.abc import Mapping as Lookup

    from server.core.tokens import Scope
    from server.store.stored import Actor, StoredToken

_Result = TypeVar("_Result")


class _Run(Protocol):
    """Runs work inside a transaction, off the event loop and within the store's limit."""

    async def __call__(self, work: Callable[[Transaction], _Result], /) -> _Result: ...


class Tokens:
    """The tokens of a store, which runs the transactions. Every call may raise StoreUnavailableError, as its do."""

    def __init__(self, read: _Run, write: _Run) -> None:
        self._read = read
        self._write = write

    async def all(self) -> list[StoredToken]:
        """All tokens that were ever made, by id; also the expired and revoked ones."""
        query = select(TokenRow).order_by(col(TokenRow.id))
        return await self._read(lambda transaction: [row.stored() for row in transaction.exec(query)])

    async def create(
        self, name: str, scope: Scope, *, expires_at: datetime | None, actor: Actor
    ) -> tuple[StoredToken, str]:
        """Make a token; returns it with its secret, which is in no other place from then on.

        Raises:
            TokenNameTakenError: a token of this name is neither expired nor revoked; events name tokens, so one name
                must not mean two of them.
            ValueError: the name can't be one of a token.
        """
        secret = new_token(secrets.token_bytes(SECRET_BYTES))

        def insert(transaction: Transaction) -> StoredToken:
            now = datetime.now(UTC)
            of_that_name = transaction.exec(select(TokenRow).where(TokenRow.name == name))
            if any(row.stored().state(now) == "active" for row in of_that_name):
                raise TokenNameTakenError(name)
            row = TokenRow(name=name, hash=hash_of(secret), scope=scope, created_at=now, expires_at=expires_at)
            transaction.add(row)
            transaction.flush()
            token = row.stored()
            detail = {"scope": scope, "expires_at": None if expires_at is None else expires_at.isoformat()}
            _record(transaction, token, actor=actor, action="create token", detail=detail)
            return token

        check_name(name)
        return await self._write(insert), secret

    async def revoke(self, token_id: int, *, actor: Actor) -> StoredToken:
        """Revoke a token for good; one that is revoked stays as it is.

        Raises:
            TokenNotFoundError: there is none with this id.
        """

        def mark(transaction: Transaction) -> StoredToken:
            row = transaction.get(TokenRow, token_id)
            if row is None:
                raise TokenNotFoundError(token_id)
            if row.revoked_at is None:
                row.revoked_at = datetime.now(UTC)
                _record(transaction, row.stored(), actor=actor, action="revoke token", detail={})
            return row.stored()

        return await self._write(mark)

    async def used(self, uses: Lookup[int, datetime]) -> None:
        """Remember when tokens were last used, by their ids; an earlier time than the stored one changes nothing."""

        def remember(transaction: Transaction) -> None:
            for token_id, at in uses.items():
                earlier = or_(col(TokenRow.last_used_at).is_(None), col(TokenRow.last_used_at) < at)
                transaction.exec(update(TokenRow).where(col(TokenRow.id) == token_id, earlier).values(last_used_at=at))

        await self._write(remember)


def _record(transaction: Transaction, token: StoredToken, *, actor: Actor, action: str, detail: dict[str, Any]) -> None:
    """Write an event, which concerns no mapping."""
    rows.record_event(
        transaction, actor=actor, action=action, mapping="", detail={"token": token.name, "id": token.id, **detail}
    )
