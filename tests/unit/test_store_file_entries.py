"""Applying the configuration file: what it creates, replaces, deletes and leaves to the API."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.core.mapping import Mapping
from server.core.subscription import Session
from server.store.store import Store
from server.store.stored import ApplyReport, SessionChange

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

Entry = tuple[Mapping, str]


def mapping(name: str = "demo", *, client_id: str | None = None, **fields: Any) -> Mapping:
    source = {"topic": "demo/#", "client_id": client_id}
    return Mapping.model_validate({"name": name, "mqtt": source, "kafka": {"topic": "demo"}, **fields})


def pause(spec: Mapping) -> Mapping:
    return spec.model_copy(update={"paused": True})


def resume(spec: Mapping) -> Mapping:
    return spec.model_copy(update={"paused": False})


async def names(store: Store) -> list[str]:
    return [each.spec.name for each in await store.mappings()]


@pytest.fixture
async def store(database_url: str) -> AsyncIterator[Store]:
    store = Store(database_url, client_id_of=lambda spec: spec.client_id("base"))
    await store.open()
    yield store
    await store.close()


async def test_new_entries_are_created_paused_or_not_as_the_file_says(store: Store) -> None:
    report = await store.apply_file([(mapping("b"), "1"), (mapping("a", paused=True), "1")], prune=True)
    assert report == ApplyReport(created=("b", "a"))
    a, b = await store.mappings()
    assert (a.spec, a.origin, a.generation) == (mapping("a", paused=True), "file", 1)
    assert b.spec == mapping("b")
    assert {(event.actor, event.action) for event in await store.events(limit=10)} == {("file", "create")}


async def test_the_same_file_again_changes_nothing(store: Store) -> None:
    await store.apply_file([(mapping(), "1")], prune=True)
    before = await store.mappings()
    assert await store.apply_file([(mapping(), "1")], prune=True) == ApplyReport(unchanged=("demo",))
    assert await store.mappings() == before
    assert len(await store.events(limit=10)) == 1


async def test_a_changed_entry_replaces_the_spec_but_not_the_pause(store: Store) -> None:
    await store.apply_file([(mapping(), "1")], prune=True)
    await store.change("demo", pause, expected=None, action="pause")
    report = await store.apply_file([(mapping(wrap_as_json=True), "2")], prune=True)
    assert report == ApplyReport(replaced=("demo",))
    [found] = await store.mappings()
    assert (found.spec.wrap_as_json, found.spec.paused, found.generation) == (True, True, 3)
    event = (await store.events(limit=1))[0]
    assert (event.actor, event.action) == ("file", "change")


async def test_a_changed_entry_replaces_what_the_api_made_of_it(store: Store) -> None:
    await store.apply_file([(mapping(), "1")], prune=True)
    await store.change("demo", lambda _: mapping(buffer_bytes=4096), expected=None, action="change")
    await store.apply_file([(mapping(wrap_as_json=True), "2")], prune=True)
    assert (await store.mapping("demo")).spec == mapping(wrap_as_json=True)


async def test_an_entry_that_only_reads_differently_is_no_change(store: Store) -> None:
    await store.apply_file([(mapping(), "1")], prune=True)
    assert await store.apply_file([(mapping(), "2")], prune=True) == ApplyReport(unchanged=("demo",))
    assert (await store.mapping("demo")).generation == 1
    await store.change("demo", lambda _: mapping(buffer_bytes=4096), expected=None, action="change")
    await store.apply_file([(mapping(), "2")], prune=True)
    assert (await store.mapping("demo")).spec.buffer_bytes == 4096, "the new digest was remembered"


async def test_edits_and_pauses_by_the_api_persist_while_the_entry_is_unchanged(store: Store) -> None:
    await store.apply_file([(mapping(), "1")], prune=True)
    edited = mapping(buffer_bytes=4096, paused=True)
    await store.change("demo", lambda _: edited, expected=None, action="change")
    await store.apply_file([(mapping(), "1")], prune=True)
    assert (await store.mapping("demo")).spec == edited


async def test_an_entry_the_api_deleted_stays_deleted_until_the_file_changes_it(store: Store) -> None:
    await store.apply_file([(mapping(), "1"), (mapping("other"), "1")], prune=True)
    await store.delete("demo", expected=None)
    report = await store.apply_file([(mapping(), "1"), (mapping("other"), "1")], prune=True)
    assert report.unchanged == ("demo", "other")
    assert await names(store) == ["other"]
    report = await store.apply_file([(mapping(paused=True), "2"), (mapping("other"), "1")], prune=True)
    assert report.created == ("demo",)
    assert (await store.mapping("demo")).spec.paused


async def test_a_removed_entry_is_deleted_and_its_session_is_to_be_ended(store: Store) -> None:
    await store.apply_file([(mapping("gone"), "1"), (mapping(), "1")], prune=True)
    await store.write_sessions([SessionChange("base-gone", Session(client_id="base-gone", mapping="gone"))])
    report = await store.apply_file([(mapping(), "1")], prune=True)
    assert report == ApplyReport(unchanged=("demo",), deleted=("gone",))
    assert await names(store) == ["demo"]
    event = (await store.events(limit=1))[0]
    assert (event.actor, event.action, event.mapping) == ("file", "delete", "gone")
    assert event.detail["client_ids"] == ["base-gone"]
    assert await store.sessions() == [Session(client_id="base-gone", mapping="gone", removal_pending=True)]


async def test_what_a_file_would_delete_is_told_with_the_client_ids_its_sessions_have(store: Store) -> None:
    quiet = mapping("quiet", client_id="")
    await store.apply_file([(mapping("gone"), "1"), (mapping("new"), "1"), (quiet, "1"), (mapping(), "1")], prune=True)
    for former in ("old-gone", "older-gone"):
        await store.write_sessions([SessionChange(former, Session(client_id=former, mapping="gone"))])
    told = {"gone": ["old-gone", "older-gone"], "new": ["base-new"], "quiet": []}
    assert await store.deleted_by_file([(mapping(), "1")], prune=True) == told
    assert await store.deleted_by_file([(mapping(), "1")], prune=False) == {}
    assert await names(store) == ["demo", "gone", "new", "quiet"], "nothing was deleted"
    await store.apply_file([(mapping(), "1")], prune=True)
    events = await store.events(limit=3)
    assert {event.mapping: event.detail["client_ids"] for event in events} == told


async def test_without_pruning_a_removed_entry_is_paused_once(store: Store) -> None:
    files: list[list[Entry]] = [[(mapping("gone"), "1"), (mapping(), "1")], [(mapping(), "1")]]
    await store.apply_file(files[0], prune=False)
    assert (await store.apply_file(files[1], prune=False)).paused == ("gone",)
    assert (await store.mapping("gone")).spec.paused
    event = (await store.events(limit=1))[0]
    assert (event.action, event.detail["reason"]) == ("pause", "removed from the file")
    await store.change("gone", resume, expected=None, action="resume")
    for prune in (False, True):
        assert await store.apply_file(files[1], prune=prune) == ApplyReport(unchanged=("demo",))
    assert not (await store.mapping("gone")).spec.paused, "who resumed it has taken it over"


async def test_a_paused_mapping_that_is_removed_without_pruning_is_left_alone(store: Store) -> None:
    await store.apply_file([(mapping("gone", paused=True), "1"), (mapping(), "1")], prune=False)
    assert (await store.apply_file([(mapping(), "1")], prune=False)).paused == ()
    assert (await store.mapping("gone")).generation == 1


async def test_an_entry_that_comes_back_after_its_pause_stays_paused_with_a_warning(store: Store) -> None:
    await store.apply_file([(mapping("back"), "1"), (mapping(), "1")], prune=False)
    await store.apply_file([(mapping(), "1")], prune=False)
    report = await store.apply_file([(mapping("back", wrap_as_json=True), "2"), (mapping(), "1")], prune=False)
    assert report.replaced == ("back",)
    assert "'back' is in the configuration file again and is still paused" in report.warnings[0]
    assert (await store.mapping("back")).spec == mapping("back", wrap_as_json=True, paused=True)


@pytest.mark.parametrize("prune", [True, False])
async def test_a_file_without_entries_deletes_nothing_and_warns(store: Store, prune: bool) -> None:
    await store.apply_file([(mapping("a"), "1"), (mapping("b"), "1"), (mapping("paused"), "1")], prune=True)
    await store.apply_file([(mapping("a"), "1"), (mapping("b"), "1")], prune=False)
    await store.create(mapping("own"))
    report = await store.apply_file([], prune=prune)
    [warning] = report.warnings
    assert warning.startswith("the configuration file has no forwarding entries, so nothing was deleted; ")
    assert warning.endswith("mappings that came from it: 'a', 'b', 'paused'")
    assert await names(store) == ["a", "b", "own", "paused"]
    assert (await store.apply_file([(mapping("b"), "1")], prune=True)).deleted == ("a",), "it is still remembered"


async def test_an_entry_named_like_a_mapping_of_the_api_is_skipped_until_that_is_gone(store: Store) -> None:
    await store.create(mapping(buffer_bytes=4096))
    for _ in range(2):
        report = await store.apply_file([(mapping(), "1")], prune=True)
        assert report.skipped == ("demo",)
        assert "'demo' of the configuration file was skipped: the API made a mapping" in report.warnings[0]
    assert (await store.mapping("demo")).spec.buffer_bytes == 4096
    await store.delete("demo", expected=None)
    assert (await store.apply_file([(mapping(), "1")], prune=True)).created == ("demo",)


async def test_a_mapping_of_the_api_is_never_deleted_by_the_file(store: Store) -> None:
    await store.apply_file([(mapping(), "1"), (mapping("other"), "1")], prune=True)
    await store.delete("demo", expected=None)
    await store.create(mapping())
    assert (await store.apply_file([(mapping("other"), "1")], prune=True)).deleted == ()
    assert await names(store) == ["demo", "other"]


async def test_an_entry_with_a_taken_client_id_is_skipped_and_the_others_are_not(store: Store) -> None:
    await store.create(mapping("api", client_id="shared"))
    report = await store.apply_file([(mapping("a", client_id="shared"), "1"), (mapping("b"), "1")], prune=True)
    assert (report.created, report.skipped) == (("b",), ("a",))
    assert "its MQTT client id 'shared' is the mapping 'api''s" in report.warnings[0]
    assert await names(store) == ["api", "b"]


async def test_two_entries_may_swap_their_client_ids(store: Store) -> None:
    await store.apply_file([(mapping("a", client_id="x"), "1"), (mapping("b", client_id="y"), "1")], prune=True)
    report = await store.apply_file(
        [(mapping("a", client_id="y"), "2"), (mapping("b", client_id="x"), "2")], prune=True
    )
    assert report == ApplyReport(replaced=("a", "b"))


async def test_an_entry_that_waits_for_a_skipped_ones_client_id_is_skipped_too(store: Store) -> None:
    await store.create(mapping("api", client_id="z"))
    await store.apply_file([(mapping("a", client_id="x"), "1"), (mapping("b", client_id="y"), "1")], prune=True)
    report = await store.apply_file(
        [(mapping("a", client_id="y"), "2"), (mapping("b", client_id="z"), "2")], prune=True
    )
    assert report.skipped == ("b", "a")
    assert [each.spec.mqtt.client_id for each in await store.mappings()] == ["x", "z", "y"]


async def test_a_deleted_mappings_client_id_is_free_at_once(store: Store) -> None:
    await store.apply_file([(mapping("old", client_id="x"), "1")], prune=True)
    report = await store.apply_file([(mapping("new", client_id="x"), "1")], prune=True)
    assert (report.created, report.deleted, report.skipped) == (("new",), ("old",), ())


async def test_a_changed_base_that_makes_client_ids_clash_is_warned_of(store: Store) -> None:
    entries = [(mapping("a"), "1"), (mapping("b", client_id="other-a"), "1")]
    await store.apply_file(entries, prune=True)
    store._client_id_of = lambda spec: spec.client_id("other")
    report = await store.apply_file(entries, prune=True)
    assert report.skipped == ()
    assert "'a' and 'b' now have the same MQTT client id 'other-a'" in report.warnings[0]


async def test_two_entries_of_one_name_are_a_mistake_of_the_caller(store: Store) -> None:
    with pytest.raises(ValueError, match="same name"):
        await store.apply_file([(mapping(), "1"), (mapping(), "2")], prune=True)


async def test_a_thousand_entries_are_applied_in_one_go(store: Store) -> None:
    entries = [(mapping(f"m{number:04}"), "1") for number in range(1000)]
    assert len((await store.apply_file(entries, prune=True)).created) == 1000
    assert len((await store.apply_file(entries, prune=True)).unchanged) == 1000
    assert (await store.create(mapping("one more"))).generation == 1


CLIENT_IDS = st.sampled_from([None, "", "x", "y", "base-a"])
SPECS = st.builds(
    lambda name, client_id, paused: mapping(name, client_id=client_id, paused=paused),
    st.sampled_from("abcd"),
    CLIENT_IDS,
    st.booleans(),
)
FILES = st.lists(SPECS, unique_by=lambda spec: spec.name, max_size=4)


def entries_of(specs: list[Mapping]) -> list[Entry]:
    return [(spec, spec.model_dump_json()) for spec in specs]


@settings(max_examples=60, deadline=None)
@given(made_by_api=FILES, files=st.lists(FILES, min_size=1, max_size=3), deleted=st.sampled_from("abcd"), prune=...)
def test_applying_a_file_twice_changes_nothing_more_and_client_ids_stay_unique(
    made_by_api: list[Mapping], files: list[list[Mapping]], deleted: str, prune: bool
) -> None:
    async def scenario() -> None:
        store = Store("sqlite://", client_id_of=lambda spec: spec.client_id("base"))
        await store.open()
        taken: set[str] = set()
        for spec in made_by_api:
            client_id = spec.client_id("base")
            if not client_id or client_id not in taken:
                await store.create(spec)
                taken.add(client_id)
        for file in files:
            before = {each.spec.name: each for each in await store.mappings()}
            await store.apply_file(entries_of(file), prune=prune)
            after = await store.mappings()
            again = await store.apply_file(entries_of(file), prune=prune)
            assert (again.created, again.replaced, again.deleted, again.paused) == ((), (), (), ())
            assert await store.mappings() == after
            client_ids = [found for each in after if (found := each.spec.client_id("base"))]
            assert len(set(client_ids)) == len(client_ids)
            for name, each in before.items():
                if each.origin == "api":
                    assert each in after, f"{name} was made by the API"
            if deleted in [each.spec.name for each in after]:
                await store.delete(deleted, expected=None)
        await store.close()

    asyncio.run(scenario())
