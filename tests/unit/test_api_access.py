"""Every route with every kind of token, by the application's own table of routes: none comes without a rule."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Literal

import pytest
from structlog.testing import capture_logs

from server.api.gate import Gate, Opening
from server.core.attempts import FailedAttempts
from server.core.lifecycle import State
from server.core.tokens import Scope, hash_of
from server.store.store import Store
from tests.unit.api_under_test import Api, api_under_test, client_id_of, document, problem

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

Rule = Literal["public", "read", "write", "admin"]
V1 = "/api/v1"
# What every route is to ask for; written down again here, so that a slip in a route does not change the test with it.
RULES: dict[tuple[str, str], Rule] = {
    ("GET", "/"): "public",
    ("GET", "/docs"): "public",
    ("GET", "/docs/{name}"): "public",
    ("GET", "/openapi.json"): "public",
    ("GET", "/problems/{slug}"): "public",
    ("GET", "/livez"): "public",
    ("GET", "/health"): "public",
    ("GET", "/startupz"): "public",
    ("GET", "/readyz"): "public",
    ("GET", "/healthz/forwarding"): "public",
    ("GET", "/metrics"): "read",  # with MKF_METRICS_AUTH=true, as here
    ("GET", f"{V1}/mappings"): "read",
    ("POST", f"{V1}/mappings"): "write",
    ("POST", f"{V1}/mappings/validate"): "read",
    ("GET", f"{V1}/mappings/{{name}}"): "read",
    ("PUT", f"{V1}/mappings/{{name}}"): "write",
    ("PATCH", f"{V1}/mappings/{{name}}"): "write",
    ("DELETE", f"{V1}/mappings/{{name}}"): "write",
    ("GET", f"{V1}/mappings/{{name}}/status"): "read",
    ("POST", f"{V1}/mappings/{{name}}/pause"): "write",
    ("POST", f"{V1}/mappings/{{name}}/resume"): "write",
    ("POST", f"{V1}/mappings/{{name}}/restart"): "write",
    ("POST", f"{V1}/mappings/{{name}}/reset-session"): "write",
    ("POST", f"{V1}/preview"): "read",
    ("GET", f"{V1}/config/export"): "read",
    ("GET", f"{V1}/events"): "read",
    ("GET", f"{V1}/tokens"): "admin",
    ("POST", f"{V1}/tokens"): "admin",
    ("DELETE", f"{V1}/tokens/{{id}}"): "admin",
}
PROTECTED = sorted(route for route, rule in RULES.items() if rule != "public")
PUBLIC = sorted(set(RULES) - set(PROTECTED))
BAD = ["none", "empty", "scheme", "two", "wrong", "hash", "expired", "revoked"]


@dataclass
class Guarded:
    """An API that is listened for on more than loopback, and a header for each kind of caller."""

    api: Api
    headers: dict[str, dict[str, str]]
    hashes: list[str]

    def allow_failures(self) -> None:
        """Forget how often somebody has failed, for tests of something else."""
        self.api.app.state.services.gate._attempts = FailedAttempts()

    async def call(self, route: tuple[str, str], kind: str) -> Any:
        method, path = route
        path = path.format(name="swagger-ui.css" if "docs" in path else "plant", slug="invalid", id=10**6)
        # As somebody who could do harm would: with bodies that are right.
        body = document("new") if path.endswith("mappings") else document(wrap_as_json=True)
        if path.endswith("preview"):
            body = {"mapping": document(), "message": {"topic": "plant/a", "payload": "1"}}
        if path.endswith("tokens"):
            body = {"name": "new", "scope": "admin"}
        return await self.api.http.request(method, path, json=body, headers=self.headers[kind])


@pytest.fixture
async def guarded(tmp_path: Path) -> AsyncIterator[Guarded]:
    async with api_under_test(tmp_path, metrics_protected=True) as api:
        await api.create(paused=True)
        headers: dict[str, dict[str, str]] = {
            "none": {},
            "empty": {"authorization": ""},
            "wrong": {"authorization": "Bearer mkf_" + "x" * 43},
        }
        now = datetime.now(UTC)
        hashes = []
        for name in ("read", "write", "admin", "expired", "revoked"):
            token, secret = await api.store.tokens.create(
                name,
                Scope.__members__.get(name.upper(), Scope.ADMIN),
                expires_at=now - timedelta(seconds=1) if name == "expired" else now + timedelta(hours=1),
                actor="cli",
            )
            headers[name] = {"authorization": f"Bearer {secret}"}
            hashes.append(token.hash)
            if name == "revoked":
                await api.store.tokens.revoke(token.id, actor="cli")
        secret = headers["admin"]["authorization"].removeprefix("Bearer ")
        headers["scheme"] = {"authorization": f"Basic {secret}"}
        headers["two"] = {"authorization": f"Bearer {secret}, Bearer {secret}"}
        headers["hash"] = {"authorization": f"Bearer {hashes[2]}"}
        api.app.state.services.gate.forget()
        yield Guarded(api, headers, hashes)


def routes(router: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Every route there is, also those that the OpenAPI document leaves out."""
    for route in router.routes:
        if hasattr(route, "include_context"):
            yield from routes(route.original_router, prefix + route.include_context.prefix)
        else:
            yield from ((method, prefix + route.path) for method in route.methods - {"HEAD"})


async def test_every_route_has_a_rule_and_every_rule_a_route(guarded: Guarded) -> None:
    found = list(routes(guarded.api.app))
    assert set(found) == set(RULES)
    assert len(found) == len(RULES)


async def test_the_document_tells_the_scope_of_each_route(guarded: Guarded) -> None:
    described = (await guarded.api.http.get("/openapi.json")).json()
    assert described["components"]["securitySchemes"]["token"]["scheme"] == "bearer"
    told: dict[tuple[str, str], Rule] = {}
    for path, operations in described["paths"].items():
        for method, operation in operations.items():
            [*scopes] = [scope for wanted in operation.get("security", []) for scope in wanted["token"]]
            told[method.upper(), path] = scopes[0] if scopes else "public"
            assert len(scopes) <= 1
            if scopes:
                assert {"401", "403", "429"} <= set(operation["responses"])
    hidden = {("GET", path) for path in ("/", "/docs", "/docs/{name}", "/openapi.json", "/problems/{slug}")}
    assert told == {route: rule for route, rule in RULES.items() if route not in hidden}


async def test_without_a_good_token_no_route_does_anything_and_all_say_401(guarded: Guarded) -> None:
    before = await guarded.api.store.events(limit=100)
    for route in PROTECTED:
        for kind in BAD:
            guarded.allow_failures()
            response = await guarded.call(route, kind)
            found = problem(response, 401, "unauthenticated")
            challenge = response.headers["www-authenticate"]
            assert challenge == ('Bearer realm="mkf"' + ("" if kind == "none" else ', error="invalid_token"')), route
            assert not any(each in found["detail"] for each in guarded.hashes)
    assert await guarded.api.store.events(limit=100) == before
    assert guarded.api.runtime.wakes == 1


@pytest.mark.parametrize("scope", list(Scope))
async def test_a_token_does_what_its_scope_allows_and_no_more(guarded: Guarded, scope: Scope) -> None:
    for route in PROTECTED:
        before = (await guarded.api.store.events(limit=1))[0].id
        response = await guarded.call(route, scope)
        changes = [event for event in await guarded.api.store.events(limit=10) if event.id > before]
        needed = Scope(RULES[route])
        if scope.includes(needed):
            assert response.status_code not in {401, 403, 429, 500}, (route, response.text)
            assert {event.actor for event in changes} <= {f"token:{scope}"}, route
        else:
            detail = problem(response, 403, "insufficient-scope")["detail"]
            assert detail == f"this needs a token with the scope {needed}, and token:{scope} has {scope}"
            challenge = f'Bearer realm="mkf", error="insufficient_scope", scope="{needed}"'
            assert response.headers["www-authenticate"] == challenge
            assert not changes, route


@pytest.mark.parametrize(
    ("action", "route"),
    [
        ("create", ("POST", f"{V1}/mappings")),
        ("replace", ("PUT", f"{V1}/mappings/{{name}}")),
        ("patch", ("PATCH", f"{V1}/mappings/{{name}}")),
        ("resume", ("POST", f"{V1}/mappings/{{name}}/resume")),
        ("restart", ("POST", f"{V1}/mappings/{{name}}/restart")),
        ("pause", ("POST", f"{V1}/mappings/{{name}}/pause")),
        ("reset session", ("POST", f"{V1}/mappings/{{name}}/reset-session")),
        ("delete", ("DELETE", f"{V1}/mappings/{{name}}")),
    ],
)
async def test_an_event_names_the_token_that_did_it(guarded: Guarded, action: str, route: tuple[str, str]) -> None:
    if action in {"pause", "restart"}:
        await guarded.call(("POST", f"{V1}/mappings/{{name}}/resume"), "admin")
    guarded.api.runtime.states["plant"] = State.PAUSED
    response = await guarded.call(route, "write")
    assert response.status_code < 300, response.text
    newest = (await guarded.api.http.get(f"{V1}/events", headers=guarded.headers["read"])).json()["items"][0]
    assert (newest["actor"], newest["action"]) == ("token:write", action)


async def test_what_is_public_needs_no_token_and_minds_none(guarded: Guarded) -> None:
    for route in PUBLIC:
        for kind in guarded.headers:
            assert (await guarded.call(route, kind)).status_code in {200, 307}, route


async def test_while_the_store_is_away_a_token_known_before_works_and_nothing_opens(guarded: Guarded) -> None:
    preview = ("POST", f"{V1}/preview")
    assert (await guarded.call(preview, "read")).status_code == 200
    await guarded.api.store.close()
    assert (await guarded.call(preview, "read")).status_code == 200
    for route in PROTECTED:
        for kind in BAD:
            guarded.allow_failures()
            assert (await guarded.call(route, kind)).status_code in {401, 503}, (route, kind)
    problem(await guarded.call(preview, "wrong"), 503, "store-unavailable")


async def test_metrics_are_public_unless_they_shall_not_be(tmp_path: Path) -> None:
    async with api_under_test(tmp_path) as api:
        await api.store.tokens.create("a", Scope.READ, expires_at=None, actor="cli")
        assert (await api.http.get("/metrics")).status_code == 200


async def test_authentication_comes_before_everything_that_a_request_says(guarded: Guarded) -> None:
    for path in (f"{V1}/events?limit=x", f"{V1}/mappings/none", f"{V1}/tokens/x"):
        problem(await guarded.api.http.get(path.replace("/x", "")), 401, "unauthenticated")
    response = await guarded.api.http.post(f"{V1}/mappings", content=b"x" * 2_000_000)
    problem(response, 401, "unauthenticated")


async def test_two_authorization_headers_are_none(guarded: Guarded) -> None:
    good = guarded.headers["admin"]["authorization"]
    response = await guarded.api.http.get(f"{V1}/events", headers=[("authorization", good), ("authorization", good)])
    problem(response, 401, "unauthenticated")


async def test_nothing_told_to_callers_or_logged_holds_a_token_or_a_hash(guarded: Guarded) -> None:
    with capture_logs() as logs:
        told = []
        for kind in guarded.headers:
            for route in RULES:
                response = await guarded.call(route, kind)
                told += [response.text, str(response.headers)]
    assert len(logs) > 5
    events = str(await guarded.api.store.events(limit=1000))
    new = [text for text in told if '"token":"mkf_' in text]
    assert len(new) == 1, "the one answer that tells a token, to who made it"
    secrets = [header.get("authorization", "").rpartition(" ")[2] for header in guarded.headers.values()]
    canaries = [*filter(None, secrets), *guarded.hashes, new[0].partition('"token":"')[2].partition('"')[0]]
    text = (
        "".join(each for each in told if each is not new[0]) + str(logs) + events + repr(guarded.api.app.state.services)
    )
    assert len(canaries) > 10
    for canary in canaries:
        assert canary not in text
        assert hash_of(canary) not in text


@pytest.mark.parametrize(("opening", "status"), [(Opening.WITHOUT_TOKENS, 200), (Opening.NEVER, 401)])
async def test_without_any_token_only_loopback_is_open(tmp_path: Path, opening: Opening, status: int) -> None:
    store = Store(f"sqlite:///{tmp_path}/store.db", client_id_of=client_id_of)
    await store.open()
    async with api_under_test(tmp_path, gate=Gate(store.tokens, opening=opening)) as api:
        assert (await api.http.get(f"{V1}/mappings")).status_code == status
        assert (await api.http.get("/readyz")).json()["warnings"] == []
    await store.close()


async def test_a_service_open_to_all_says_so_in_probes_and_statuses(tmp_path: Path) -> None:
    store = Store(f"sqlite:///{tmp_path}/store.db", client_id_of=client_id_of)
    await store.open()
    gate = Gate(store.tokens, opening=Opening.ALWAYS)
    with capture_logs() as logs:
        await gate.check()
    assert [entry["event"] for entry in logs] == ["api_open"]
    async with api_under_test(tmp_path, gate=gate) as api:
        await api.store.tokens.create("a", Scope.READ, expires_at=None, actor="cli")
        await api.create()
        for probe in ("/readyz", "/livez", "/healthz/forwarding"):
            assert "MKF_AUTH=none" in (await api.http.get(probe)).json()["warnings"][0]
        assert "MKF_AUTH=none" in (await api.http.get(f"{V1}/mappings/plant/status")).json()["warnings"][0]
        item = (await api.http.get(f"{V1}/mappings")).json()["items"][0]
        assert "MKF_AUTH=none" in item["status"]["warnings"][0]
    await store.close()
