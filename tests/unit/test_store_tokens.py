"""API tokens in the store: the secret leaves once, the hash stays, and every change is an event."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest

from server.core.tokens import Scope, hash_of
from server.store.errors import TokenNameTakenError, TokenNotFoundError
from server.store.store import Store

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

HOUR = timedelta(hours=1)


@pytest.fixture
async def store(database_url: str) -> AsyncIterator[Store]:
    store = Store(database_url, client_id_of=lambda _: "")
    await store.open()
    yield store
    await store.close()


async def create(store: Store, name: str = "ci", *, expires_at: datetime | None = None) -> tuple[int, str]:
    token, secret = await store.tokens.create(name, Scope.WRITE, expires_at=expires_at, actor="cli")
    return token.id, secret


async def test_a_token_is_kept_as_a_hash_and_without_its_secret(store: Store, tmp_path: Path) -> None:
    expires_at = datetime.now(UTC) + HOUR
    token, secret = await store.tokens.create("ci", Scope.READ, expires_at=expires_at, actor="cli")
    [found] = await store.tokens.all()
    assert found == token
    assert (found.name, found.scope, found.hash, found.expires_at) == ("ci", "read", hash_of(secret), expires_at)
    assert (found.last_used_at, found.revoked_at, found.state(datetime.now(UTC))) == (None, None, "active")
    assert abs(datetime.now(UTC) - found.created_at) < HOUR
    await store.close()
    assert secret.encode() not in b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert found.hash not in repr(found)


async def test_no_two_tokens_are_the_same(store: Store) -> None:
    assert len({(await create(store, f"t{number}"))[1] for number in range(20)}) == 20


async def test_a_name_is_free_again_when_its_token_is_expired_or_revoked(store: Store) -> None:
    first, _ = await create(store)
    with pytest.raises(TokenNameTakenError, match="'ci' is in use; choose another name, or revoke"):
        await create(store)
    await store.tokens.revoke(first, actor="cli")
    await create(store, expires_at=datetime.now(UTC) - HOUR)
    await create(store)
    assert [each.state(datetime.now(UTC)) for each in await store.tokens.all()] == ["revoked", "expired", "active"]


async def test_a_name_that_would_not_read_well_makes_no_token(store: Store) -> None:
    with pytest.raises(ValueError, match="letters, digits"):
        await create(store, "a b")
    assert await store.tokens.all() == []


async def test_revoking_is_for_good_and_said_once(store: Store) -> None:
    token_id, _ = await create(store)
    revoked = await store.tokens.revoke(token_id, actor="token:boss")
    assert revoked.state(datetime.now(UTC)) == "revoked"
    assert await store.tokens.revoke(token_id, actor="token:other") == revoked
    told = [(event.actor, event.action, event.mapping, event.detail) for event in await store.events(limit=9)]
    assert told == [
        ("token:boss", "revoke token", "", {"token": "ci", "id": token_id}),
        ("cli", "create token", "", {"token": "ci", "id": token_id, "scope": "write", "expires_at": None}),
    ]


async def test_a_token_that_does_not_exist_can_not_be_revoked(store: Store) -> None:
    with pytest.raises(TokenNotFoundError, match="no API token with the id 7"):
        await store.tokens.revoke(7, actor="cli")


async def test_the_last_use_is_the_latest_that_was_told(store: Store) -> None:
    first, _ = await create(store)
    second, _ = await create(store, "other")
    now = datetime.now(UTC)
    await store.tokens.used({first: now})
    await store.tokens.used({first: now - HOUR, second: now - HOUR, 99: now})
    assert [each.last_used_at for each in await store.tokens.all()] == [now, now - HOUR]
