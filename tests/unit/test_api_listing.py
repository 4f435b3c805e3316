"""The list of mappings: its order, its filters, its pages."""

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


async def names(api: Api, **query: object) -> list[str]:
    response = await api.http.get(MAPPINGS, params=query)  # type: ignore[arg-type]
    assert response.status_code == 200, response.text
    return [item["mapping"]["name"] for item in response.json()["items"]]


async def test_the_list_has_spec_and_observed_state_by_name(api: Api) -> None:
    for name in ("b", "a", "C"):
        await api.create(name)
    assert await names(api) == ["C", "a", "b"]
    item = (await api.http.get(MAPPINGS)).json()["items"][1]
    assert set(item) == {"mapping", "status", "generation", "origin", "created_at", "updated_at"}
    assert (item["generation"], item["origin"], item["status"]["state"]) == (1, "api", "running")
    assert item["created_at"].endswith("Z")


async def test_states_select_and_may_be_repeated(api: Api) -> None:
    for name in ("a", "b", "c"):
        await api.create(name)
    api.runtime.states |= {"a": State.FAILED, "b": State.RETRYING}
    assert await names(api, state="failed") == ["a"]
    assert await names(api, state=["failed", "retrying"]) == ["a", "b"]
    assert await names(api, state="paused") == []


async def test_text_is_found_in_names_filters_and_kafka_topics_in_any_case(api: Api) -> None:
    await api.create("Press")
    await api.create("b", mqtt={"topic": ["x", "hall/PRESS/#"]}, kafka={"topic": "t"})
    await api.create("c", mqtt={"topic": "y"}, kafka={"topic": "xpressx"})
    await api.create("d", mqtt={"topic": "z"}, kafka={"topic": "t"})
    assert await names(api, q="press") == ["Press", "b", "c"]
    assert await names(api, q="") == ["Press", "b", "c", "d"]


async def test_pages_cover_everything_once_even_when_their_edge_is_deleted(api: Api) -> None:
    expected = sorted(f"é/{number}" for number in range(7))
    for name in expected:
        await api.create(name)
    seen: list[str] = []
    query: dict[str, str | int] = {"limit": 3}
    while True:
        page = (await api.http.get(MAPPINGS, params=query)).json()
        seen += [item["mapping"]["name"] for item in page["items"]]
        if page["next_cursor"] is None:
            break
        await api.store.delete(seen[-1], expected=None)
        query["cursor"] = page["next_cursor"]
    assert seen == expected


@pytest.mark.parametrize("cursor", ["", "é", "x", "!!!!", "YQ", "YQ==\n", "_w=="])
async def test_a_cursor_not_from_here_is_invalid(api: Api, cursor: str) -> None:
    found = problem(await api.http.get(MAPPINGS, params={"cursor": cursor}), 422, "invalid")
    assert [error["parameter"] for error in found["errors"]] == ["cursor"]


@pytest.mark.parametrize(
    ("parameter", "value"), [("limit", "0"), ("limit", "501"), ("limit", "many"), ("state", "happy")]
)
async def test_a_bad_parameter_is_named(api: Api, parameter: str, value: str) -> None:
    found = problem(await api.http.get(MAPPINGS, params={parameter: value}), 422, "invalid")
    assert [error["parameter"] for error in found["errors"]] == [parameter]
