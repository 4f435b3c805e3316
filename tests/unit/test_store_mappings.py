"""Mappings in the store: created, changed by compare-and-set, deleted; every change with its event."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest

from server.core.mapping import Mapping
from server.store import rows
from server.store.errors import (
    ClientIdTakenError,
    GenerationChangedError,
    MappingNotFoundError,
    NameTakenError,
    StoreError,
)
from server.store.store import Store
from server.store.tables import MappingRow

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


def mapping(name: str = "demo", *, client_id: str | None = None, **fields: Any) -> Mapping:
    source = {"topic": "demo/#", "client_id": client_id}
    return Mapping.model_validate({"name": name, "mqtt": source, "kafka": {"topic": "demo"}, **fields})


def pause(spec: Mapping) -> Mapping:
    return spec.model_copy(update={"paused": True})


@pytest.fixture
async def store(database_url: str) -> AsyncIterator[Store]:
    store = Store(database_url, client_id_of=lambda spec: spec.client_id("base"))
    await store.open()
    yield store
    await store.close()


async def test_a_created_mapping_is_found_again_with_generation_1(store: Store) -> None:
    before = datetime.now(UTC)
    created = await store.create(mapping(paused=True, wrap_as_json=True))
    assert created.spec == mapping(paused=True, wrap_as_json=True)
    assert (created.generation, created.origin) == (1, "api")
    assert before <= created.created_at == created.updated_at <= datetime.now(UTC)
    assert await store.mapping("demo") == created


async def test_what_is_stored_survives_a_restart(store: Store, database_url: str) -> None:
    created = await store.create(mapping())
    await store.close()
    again = Store(database_url, client_id_of=lambda spec: spec.client_id("base"))
    await again.open()
    assert await again.mappings() == [created]
    await again.close()


async def test_mappings_come_by_name(store: Store) -> None:
    for name in ("b", "a", "Z", "ä"):
        await store.create(mapping(name))
    assert [each.spec.name for each in await store.mappings()] == ["Z", "a", "b", "ä"]


@pytest.mark.parametrize("name", ["x" * 128, "a/b c?%", "日本語 🚀", "'; DROP TABLE mapping; --", "e\u0301"])
async def test_any_printable_name_is_kept_as_it_is(store: Store, name: str) -> None:
    await store.create(mapping(name))
    assert (await store.mapping(name)).spec.name == name


async def test_names_that_differ_only_in_case_are_two_mappings(store: Store) -> None:
    await store.create(mapping("demo"))
    await store.create(mapping("Demo"))
    assert len(await store.mappings()) == 2


async def test_a_name_is_created_once(store: Store) -> None:
    await store.create(mapping())
    with pytest.raises(NameTakenError) as raised:
        await store.create(mapping())
    assert raised.value.name == "demo"
    assert len(await store.events(limit=10)) == 1


async def test_two_mappings_cannot_have_the_same_client_id(store: Store) -> None:
    await store.create(mapping("a"))
    with pytest.raises(ClientIdTakenError) as raised:
        await store.create(mapping("b", client_id="base-a"))
    assert (raised.value.client_id, raised.value.mapping) == ("base-a", "a")
    await store.create(mapping("b"))
    with pytest.raises(ClientIdTakenError):
        await store.change("b", lambda _: mapping("b", client_id="base-a"), expected=1, action="change")
    assert (await store.mapping("b")).generation == 1


async def test_mappings_without_a_client_id_never_clash(store: Store) -> None:
    await store.create(mapping("a", client_id=""))
    await store.create(mapping("b", client_id=""))
    assert len(await store.mappings()) == 2


async def test_a_clash_that_a_changed_base_brought_about_does_not_keep_one_from_pausing(store: Store) -> None:
    await store.create(mapping("a"))
    await store.create(mapping("b", client_id="other-a"))
    store._client_id_of = lambda spec: spec.client_id("other")
    assert (await store.change("b", pause, expected=1, action="pause")).spec.paused


async def test_a_change_raises_the_generation_and_keeps_origin_and_creation(store: Store) -> None:
    created = await store.create(mapping(), origin="file", actor="file")
    changed = await store.change("demo", pause, expected=1, action="pause", detail={"by": "anna"})
    assert changed.spec.paused
    assert (changed.generation, changed.origin, changed.created_at) == (2, "file", created.created_at)
    assert changed.updated_at > created.updated_at
    assert await store.mapping("demo") == changed
    [event, first] = await store.events(limit=10)
    assert (event.actor, event.action, event.mapping) == ("api", "pause", "demo")
    assert event.detail == {"by": "anna", "generation": 2}
    assert (first.actor, first.action) == ("file", "create")


async def test_a_change_to_the_same_is_no_change(store: Store) -> None:
    created = await store.create(mapping(paused=True))
    assert await store.change("demo", pause, expected=None, action="pause") == created
    assert len(await store.events(limit=10)) == 1


@pytest.mark.parametrize("action", ["restart", "resume"])
async def test_starting_anew_raises_the_generation_though_nothing_differs(store: Store, action: str) -> None:
    created = await store.create(mapping())
    assert await store.change("demo", lambda spec: spec, expected=None, action=action) == created
    restarted = await store.change("demo", lambda spec: spec, expected=None, action=action, anew=True)
    assert restarted.generation == 2
    assert (await store.events(limit=1))[0].action == action


async def test_an_edit_that_raises_changes_nothing(store: Store) -> None:
    def refuse(_: Mapping) -> Mapping:
        raise LookupError("no")

    created = await store.create(mapping())
    with pytest.raises(LookupError, match="no"):
        await store.change("demo", refuse, expected=None, action="change")
    assert await store.mapping("demo") == created


async def test_a_name_cannot_be_changed(store: Store) -> None:
    await store.create(mapping())
    with pytest.raises(ValueError, match="can't be changed to 'other'"):
        await store.change("demo", lambda _: mapping("other"), expected=None, action="change")


async def test_of_two_changes_of_the_same_generation_one_wins(store: Store) -> None:
    await store.create(mapping())
    edits = [
        store.change("demo", lambda _, n=n: mapping(buffer_bytes=n), expected=1, action="change")  # type: ignore[misc]
        for n in (2000, 3000)
    ]
    outcomes = await asyncio.gather(*edits, return_exceptions=True)
    [lost] = [each for each in outcomes if isinstance(each, GenerationChangedError)]
    assert (lost.expected, lost.actual) == (1, 2)
    assert (await store.mapping("demo")).generation == 2
    assert len(await store.events(limit=10)) == 2


async def test_two_processes_worth_of_stores_see_each_others_generations(store: Store, database_url: str) -> None:
    other = Store(database_url, client_id_of=lambda spec: spec.client_id("base"))
    await other.open()
    await store.create(mapping())
    outcomes = await asyncio.gather(
        store.change("demo", pause, expected=1, action="pause"),
        other.change("demo", pause, expected=1, action="pause"),
        return_exceptions=True,
    )
    assert sum(isinstance(each, GenerationChangedError) for each in outcomes) == 1
    assert (await other.mapping("demo")).generation == 2
    await other.close()


async def test_a_deleted_mapping_is_gone_and_its_event_names_the_client_id(store: Store) -> None:
    await store.create(mapping())
    with pytest.raises(GenerationChangedError):
        await store.delete("demo", expected=7)
    await store.delete("demo", expected=1)
    assert await store.mappings() == []
    event = (await store.events(limit=1))[0]
    assert (event.action, event.detail) == ("delete", {"client_ids": ["base-demo"], "generation": 1})


async def test_a_mapping_that_does_not_exist_is_said_to(store: Store) -> None:
    for call in (
        store.mapping("none"),
        store.delete("none", expected=None),
        store.change("none", pause, expected=None, action="pause"),
    ):
        with pytest.raises(MappingNotFoundError, match="'none'") as raised:
            await call
        assert raised.value.name == "none"


async def test_a_row_this_version_does_not_understand_is_named(store: Store) -> None:
    await store.create(mapping())
    await store._write(lambda transaction: transaction.get_one(MappingRow, "demo").spec.clear())
    await store._write(
        lambda transaction: setattr(transaction.get_one(MappingRow, "demo"), "spec", {"from": "the future"})
    )
    with pytest.raises(StoreError, match="the stored mapping 'demo' is not one this version understands"):
        await store.mappings()


async def test_events_come_newest_first_and_in_pages(store: Store) -> None:
    await store.create(mapping())
    for number in range(4):
        await store.change(
            "demo", lambda spec: spec, expected=None, action="restart", anew=True, detail={"number": number}
        )
    page = await store.events(limit=2)
    assert [event.detail["number"] for event in page] == [3, 2]
    assert [event.detail["number"] for event in await store.events(limit=2, before=page[-1].id)] == [1, 0]
    assert page[0].at.tzinfo is UTC
    assert page[0].actor == "api"


async def test_only_the_newest_events_are_kept(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    assert rows.EVENTS_KEPT == 10_000
    monkeypatch.setattr(rows, "EVENTS_KEPT", 3)
    await store.create(mapping())
    for number in range(4):
        await store.change(
            "demo", lambda spec: spec, expected=None, action="restart", anew=True, detail={"number": number}
        )
    assert [event.detail["number"] for event in await store.events(limit=10)] == [3, 2, 1]
