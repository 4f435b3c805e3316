"""Tokens by the API: the secret is told once, the list tells the rest, and revoking works at once."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from server.core.tokens import Scope, hash_of
from tests.unit.api_under_test import MAPPINGS, Api, api_under_test, document, pointers, problem

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

TOKENS = "/api/v1/tokens"


@pytest.fixture
async def api(database_url: str) -> AsyncIterator[Api]:
    """Return an API whose client has an admin token."""
    async with api_under_test(database_url) as running:
        _, secret = await running.store.tokens.create("boss", Scope.ADMIN, expires_at=None, actor="cli")
        running.http.headers["authorization"] = f"Bearer {secret}"
        yield running


async def create(api: Api, name: str = "ci", **more: Any) -> dict[str, Any]:
    response = await api.http.post(TOKENS, json={"name": name, "scope": "write", **more})
    assert response.status_code == 201, response.text
    found: dict[str, Any] = response.json()
    assert response.headers["location"] == f"{TOKENS}/{found['id']}"
    assert response.headers["cache-control"] == "no-store"
    return found


async def test_a_new_token_works_and_its_secret_is_told_once(api: Api) -> None:
    made = await create(api, expires_at=None)
    secret = made.pop("token")
    good = {"authorization": f"Bearer {secret}"}
    assert (await api.http.post(MAPPINGS, json=document(), headers=good)).status_code == 201
    response = await api.http.get(TOKENS)
    assert [item["name"] for item in response.json()["items"]] == ["boss", "ci"]
    assert response.json()["items"][1] == made
    assert (made["scope"], made["state"], made["expires_at"], made["revoked_at"]) == ("write", "active", None, None)
    events = await api.http.get("/api/v1/events")
    for text in (response.text, events.text):
        assert secret not in text
        assert hash_of(secret) not in text


async def test_making_and_revoking_are_events_with_who_did_it(api: Api) -> None:
    made = await create(api, expires_at="2099-01-01T00:00:00+02:00")
    assert (await api.http.delete(f"{TOKENS}/{made['id']}")).status_code == 204
    revoked, created = (await api.http.get("/api/v1/events")).json()["items"][:2]
    assert (revoked["actor"], revoked["action"], revoked["mapping"]) == ("token:boss", "revoke token", None)
    assert revoked["detail"] == {"token": "ci", "id": made["id"]}
    assert (created["actor"], created["action"]) == ("token:boss", "create token")
    assert created["detail"]["expires_at"] == "2098-12-31T22:00:00+00:00"


async def test_a_revoked_token_is_refused_by_the_next_request_and_stays_in_the_list(api: Api) -> None:
    made = await create(api)
    good = {"authorization": f"Bearer {made['token']}"}
    assert (await api.http.get(MAPPINGS, headers=good)).status_code == 200
    for _ in range(2):
        assert (await api.http.delete(f"{TOKENS}/{made['id']}")).status_code == 204
    assert "revoked" in problem(await api.http.get(MAPPINGS, headers=good), 401, "unauthenticated")["detail"]
    listed = (await api.http.get(TOKENS)).json()["items"][1]
    assert listed["state"] == "revoked"
    assert listed["revoked_at"] is not None


async def test_when_a_token_was_last_used_is_in_the_list(api: Api) -> None:
    assert (await api.http.get(TOKENS)).json()["items"][0]["last_used_at"] is None
    assert await api.app.state.services.gate.write_uses()
    last = datetime.fromisoformat((await api.http.get(TOKENS)).json()["items"][0]["last_used_at"])
    assert abs(datetime.now(UTC) - last) < timedelta(minutes=5)


async def test_a_name_in_use_is_a_conflict(api: Api) -> None:
    problem(await api.http.post(TOKENS, json={"name": "boss", "scope": "read"}), 409, "token-name-taken")


@pytest.mark.parametrize(
    ("change", "pointer"),
    [
        ({"name": "a b"}, "/name"),
        ({"name": 1}, "/name"),
        ({"scope": "root"}, "/scope"),
        ({"expires_at": "2020-01-01T00:00:00Z"}, "/expires_at"),
        ({"expires_at": "2099-01-01T00:00:00"}, "/expires_at"),
        ({"expires_at": "9999-12-31T23:59:59-23:00"}, "/expires_at"),
        ({"expires": "90d"}, "/expires"),
    ],
)
async def test_what_can_not_be_a_token_is_invalid_and_makes_none(
    api: Api, change: dict[str, Any], pointer: str
) -> None:
    response = await api.http.post(TOKENS, json={"name": "ci", "scope": "read"} | change)
    assert pointers(response) == [pointer]
    assert len(await api.store.tokens.all()) == 1


@pytest.mark.parametrize("unknown", ["99", "2147483647"])
async def test_a_token_that_does_not_exist_is_not_found(api: Api, unknown: str) -> None:
    problem(await api.http.delete(f"{TOKENS}/{unknown}"), 404, "token-not-found")


@pytest.mark.parametrize("nonsense", ["x", "0", "-1", "99999999999999999999"])
async def test_what_is_no_id_is_invalid(api: Api, nonsense: str) -> None:
    problem(await api.http.delete(f"{TOKENS}/{nonsense}"), 422, "invalid")
