"""Pause, resume, restart and reset-session over the API."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from server.core.lifecycle import State
from tests.unit.api_under_test import MAPPINGS, Api, api_under_test, problem

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@pytest.fixture
async def api(database_url: str) -> AsyncIterator[Api]:
    async with api_under_test(database_url) as running:
        yield running


PLANT = f"{MAPPINGS}/plant"


async def act(api: Api, action: str) -> dict[str, object]:
    response = await api.http.post(f"{PLANT}/{action}")
    assert response.status_code == 202, response.text
    found: dict[str, object] = response.json()
    assert response.headers["etag"] == f'"{found["generation"]}"'
    return found


async def test_pause_and_resume_are_stored_and_idempotent(api: Api) -> None:
    await api.create()
    expected = {"name": "plant", "desired": "paused", "generation": 2, "state": "running"}
    assert await act(api, "pause") == await act(api, "pause") == expected
    assert (await api.store.mapping("plant")).spec.paused is True
    api.runtime.states["plant"] = State.PAUSED
    expected = {"name": "plant", "desired": "running", "generation": 3, "state": "paused"}
    assert await act(api, "resume") == await act(api, "resume") == expected
    assert await api.actions() == ["resume", "pause", "create"]
    assert api.runtime.wakes == 5


async def test_resuming_a_failed_mapping_starts_it_anew(api: Api) -> None:
    await api.create()
    api.runtime.states["plant"] = State.FAILED
    assert (await act(api, "resume"))["generation"] == 2
    assert (await act(api, "resume"))["generation"] == 3
    assert await api.actions() == ["resume", "resume", "create"]


async def test_a_restart_raises_the_generation_every_time(api: Api) -> None:
    await api.create()
    assert (await act(api, "restart"))["generation"] == 2
    assert (await act(api, "restart"))["generation"] == 3
    assert await api.actions() == ["restart", "restart", "create"]


async def test_a_paused_mapping_can_not_be_restarted(api: Api) -> None:
    await api.create(paused=True)
    found = problem(await api.http.post(f"{PLANT}/restart"), 409, "mapping-paused")
    assert "resume it instead" in found["detail"]
    assert (await api.store.mapping("plant")).generation == 1


async def test_a_session_is_reset_only_while_paused(api: Api) -> None:
    await api.create()
    found = problem(await api.http.post(f"{PLANT}/reset-session"), 409, "mapping-not-paused")
    assert "pause it first" in found["detail"]
    await act(api, "pause")
    api.runtime.states["plant"] = State.DRAINING
    found = problem(await api.http.post(f"{PLANT}/reset-session"), 409, "mapping-not-paused")
    assert "still draining" in found["detail"]
    assert api.runtime.resets == []


async def test_a_reset_says_what_it_loses_and_is_recorded(api: Api) -> None:
    await api.create(paused=True)
    api.runtime.states["plant"] = State.PAUSED
    found = await act(api, "reset-session")
    assert "has queued for this mapping" in str(found["lost"])
    assert "published until the mapping is resumed is lost too" in str(found["lost"])
    assert api.runtime.resets == ["plant"]
    assert await api.actions() == ["reset session", "create"]


@pytest.mark.parametrize("action", ["pause", "resume", "restart", "reset-session"])
async def test_an_unknown_mapping_can_not_be_acted_on(api: Api, action: str) -> None:
    problem(await api.http.post(f"{MAPPINGS}/none/{action}"), 404, "mapping-not-found")
    problem(await api.http.get(f"{PLANT}/{action}"), 405, "method-not-allowed")
