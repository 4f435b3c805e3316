"""ETags, If-Match, and what two writers at once may do to each other."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from server.store.errors import GenerationChangedError
from tests.unit.api_under_test import MAPPINGS, Api, api_under_test, document, problem

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from server.store.store import StoredMapping


@pytest.fixture
async def api(database_url: str) -> AsyncIterator[Api]:
    async with api_under_test(database_url) as running:
        yield running


PLANT = f"{MAPPINGS}/plant"


@pytest.mark.parametrize("tags", ['"1"', '"9", "1"', '"9","1" , W/"3"', "*", " * "])
async def test_a_fitting_if_match_lets_the_write_pass(api: Api, tags: str) -> None:
    await api.create()
    response = await api.http.patch(PLANT, json={"mqtt": {"qos": 2}}, headers={"if-match": tags})
    assert (response.status_code, response.headers["etag"]) == (200, '"2"')


WRITES: list[tuple[str, str, Any]] = [
    ("PUT", PLANT, document(wrap_as_json=True)),
    ("PATCH", PLANT, {"wrap_as_json": True}),
    ("DELETE", PLANT, None),
    ("POST", f"{PLANT}/pause", None),
    ("POST", f"{PLANT}/resume", None),
    ("POST", f"{PLANT}/restart", None),
    ("POST", f"{PLANT}/reset-session", None),
]


@pytest.mark.parametrize(
    ("tags", "said"),
    [
        ("1", 'the quotes are part of an ETag: send If-Match: "1"'),
        ('"1', 'If-Match must be a list of ETags with their quotes, such as "3", or *.'),
        ('"1", 1x', 'If-Match must be a list of ETags with their quotes, such as "3", or *.'),
        ('*, "1"', 'If-Match must be a list of ETags with their quotes, such as "3", or *.'),
    ],
)
async def test_an_if_match_that_is_no_list_of_etags_is_malformed_for_every_write(
    api: Api, tags: str, said: str
) -> None:
    await api.create()
    for method, path, body in WRITES:
        response = await api.http.request(method, path, json=body, headers={"if-match": tags})
        assert problem(response, 400, "malformed-if-match")["detail"] == said
    stored = await api.store.mapping("plant")
    assert (stored.generation, api.runtime.wakes) == (1, 1)


@pytest.mark.parametrize("tags", ['"2"', 'W/"1"', "", '"x", "1x"', '"2", , W/"1"'])
async def test_any_other_if_match_is_stale_for_every_write(api: Api, tags: str) -> None:
    await api.create()
    headers = {"if-match": tags}
    for method, path, body in WRITES:
        response = await api.http.request(method, path, json=body, headers=headers)
        assert '"1"' in problem(response, 412, "stale-if-match")["detail"]
    stored = await api.store.mapping("plant")
    assert (stored.generation, api.runtime.wakes) == (1, 1)


@pytest.mark.parametrize("headers", [{}, {"if-match": '"1"'}, {"if-match": "*"}])
async def test_of_two_simultaneous_patches_one_wins_and_nothing_is_mixed(
    api: Api, monkeypatch: pytest.MonkeyPatch, headers: dict[str, str]
) -> None:
    await api.create()
    read, both_have_read = api.store.mapping, asyncio.Barrier(2)

    async def read_together(name: str) -> StoredMapping:
        stored = await read(name)
        await both_have_read.wait()
        return stored

    monkeypatch.setattr(api.store, "mapping", read_together)
    patches: list[dict[str, Any]] = [
        {"mqtt": {"qos": 0}, "kafka": {"topic": "zero"}},
        {"mqtt": {"qos": 2}, "kafka": {"topic": "two"}},
    ]
    responses = await asyncio.gather(*(api.http.patch(PLANT, json=patch, headers=headers) for patch in patches))
    lost = 412 if headers.get("if-match") == '"1"' else 409
    assert sorted(response.status_code for response in responses) == [200, lost]
    for response in responses:
        if response.status_code != 200:
            problem(response, lost, "stale-if-match" if lost == 412 else "lost-race")
    spec = (await read("plant")).spec
    assert (spec.mqtt.qos, spec.kafka.topic) in {(0, "zero"), (2, "two")}


@pytest.mark.parametrize(("headers", "status"), [({}, 409), ({"if-match": '"1"'}, 412)])
async def test_a_race_lost_inside_the_store_is_told_to_every_writer(
    api: Api, monkeypatch: pytest.MonkeyPatch, headers: dict[str, str], status: int
) -> None:
    await api.create()

    async def lose(name: str, *_: object, **__: object) -> None:
        raise GenerationChangedError(name, expected=1, actual=2)

    monkeypatch.setattr(api.store, "change", lose)
    monkeypatch.setattr(api.store, "delete", lose)
    slug = "lost-race" if status == 409 else "stale-if-match"
    problem(await api.http.put(PLANT, json=document(), headers=headers), status, slug)
    problem(await api.http.patch(PLANT, json={}, headers=headers), status, slug)
    problem(await api.http.delete(PLANT, headers=headers), status, slug)
    problem(await api.http.post(f"{PLANT}/pause", headers=headers), status, slug)


async def test_simultaneous_pauses_all_succeed(api: Api) -> None:
    await api.create()
    responses = await asyncio.gather(*(api.http.post(f"{PLANT}/pause") for _ in range(8)))
    assert {(response.status_code, response.headers["etag"]) for response in responses} == {(202, '"2"')}
    assert await api.actions() == ["pause", "create"]


async def test_a_pause_during_a_patch_is_not_undone_by_it(api: Api) -> None:
    await api.create()
    paused, patched = await asyncio.gather(
        api.http.post(f"{PLANT}/pause"), api.http.patch(PLANT, json={"wrap_as_json": True})
    )
    assert paused.status_code == 202
    assert patched.status_code in {200, 409}
    assert (await api.store.mapping("plant")).spec.paused is True
