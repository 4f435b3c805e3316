"""The API over a real store and a runtime that does what it is told."""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import httpx

from server.api.application import create_api
from server.api.gate import Gate, Opening
from server.core.lifecycle import State
from server.runtime.health import Health
from server.runtime.status import Counters, InFlight, MappingStatus, MqttStatus, Rates
from server.store.store import Store, StoredMapping

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from fastapi import FastAPI

    from server.core.mapping import Mapping

SINCE = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
MAPPINGS = "/api/v1/mappings"


def client_id_of(spec: Mapping) -> str:
    return spec.client_id("base")


def document(name: str = "plant", **changes: Any) -> dict[str, Any]:
    return {"name": name, "mqtt": {"topic": "plant/#"}, "kafka": {"topic": "plant_data"}} | changes


@dataclass
class FakeRuntime:
    """A Runtime whose observations are set by the test."""

    states: dict[str, State] = field(default_factory=dict)
    facts: Health = field(default_factory=lambda: Health(started=True, supervisor_running=True))
    wakes: int = 0
    resets: list[str] = field(default_factory=list)
    limit: int | None = None

    def wake(self) -> None:
        self.wakes += 1

    def status(self, stored: StoredMapping) -> MappingStatus:
        return MappingStatus(
            name=stored.spec.name,
            state=self.state(stored.spec.name),
            since=SINCE,
            desired="paused" if stored.spec.paused else "running",
            generation=stored.generation,
            mqtt=MqttStatus(connected=False, client_id=client_id_of(stored.spec), durable=True),
            in_flight=InFlight(messages=0, bytes=0),
            counters=Counters(),
            rates=Rates(),
        )

    def state(self, name: str) -> State:
        return self.states.get(name, State.RUNNING)

    def session_reset(self, name: str) -> None:
        self.resets.append(name)

    def health(self) -> Health:
        return self.facts

    def client_id_of(self, spec: Mapping) -> str:
        return client_id_of(spec)

    def record_limit(self) -> int | None:
        return self.limit


@dataclass
class Api:
    """A client, and what is behind it."""

    http: httpx.AsyncClient
    app: FastAPI
    store: Store
    runtime: FakeRuntime

    async def create(self, name: str = "plant", **changes: Any) -> httpx.Response:
        response = await self.http.post(MAPPINGS, json=document(name, **changes))
        assert response.status_code == 201, response.text
        return response

    async def actions(self) -> list[str]:
        return [event.action for event in await self.store.events(limit=100)]


async def one_metric() -> bytes:
    """What /metrics shows."""
    return b"m 1\n"


@asynccontextmanager
async def api_under_test(place: Path | str, **options: Any) -> AsyncIterator[Api]:
    """Serve the API with an empty store at this URL, or in SQLite in this folder."""
    url = place if isinstance(place, str) else f"sqlite:///{place}/store.db"
    store = Store(url, client_id_of=client_id_of)
    await store.open()
    runtime = FakeRuntime()
    settings: dict[str, Any] = {"ready_strict": False, "loopback_only": False, "metrics": one_metric} | options
    settings.setdefault("gate", Gate(store.tokens, opening=Opening.WITHOUT_TOKENS))
    app = create_api(store=store, runtime=runtime, **settings)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    try:
        async with httpx.AsyncClient(transport=transport, base_url="http://forwarder") as http:
            yield Api(http, app, store, runtime)
    finally:
        await store.close()


def problem(response: httpx.Response, status: int, slug: str) -> dict[str, Any]:
    """The problem document of a response, which must be of this kind."""
    assert response.headers["content-type"] == "application/problem+json", response.text
    found: dict[str, Any] = response.json()
    assert (response.status_code, found["status"], found["type"]) == (status, status, f"/problems/{slug}"), found
    return found


def pointers(response: httpx.Response) -> list[str]:
    return [error["pointer"] for error in problem(response, 422, "invalid")["errors"]]
