"""Sessions in the store: remembered by client id, marked for removal, and taken back."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from server.core.mapping import Mapping
from server.core.subscription import Session, Subscription
from server.store.store import Store

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

SESSION = Session(
    client_id="base-demo",
    mapping="demo",
    protocol="5",
    subscriptions=(Subscription("a/#", 1, 7), Subscription("b", 2)),
    established=True,
    held_qos2=True,
)


def mapping(name: str = "demo", client_id: str | None = None) -> Mapping:
    source = {"topic": "demo/#", "client_id": client_id}
    return Mapping.model_validate({"name": name, "mqtt": source, "kafka": {"topic": "demo"}})


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    store = Store(f"sqlite:///{tmp_path}/store.db", client_id_of=lambda spec: spec.client_id("base"))
    await store.open()
    yield store
    await store.close()


async def test_a_saved_session_is_found_again(store: Store) -> None:
    await store.save_session(SESSION)
    assert await store.session("base-demo") == SESSION
    assert await store.session("other") is None


async def test_saving_a_session_again_replaces_it(store: Store) -> None:
    await store.save_session(SESSION)
    await store.save_session(SESSION.ended())
    assert await store.sessions() == [SESSION.ended()]


async def test_sessions_come_by_client_id(store: Store) -> None:
    other = Session(client_id="a", mapping="demo")
    await store.save_session(SESSION)
    await store.save_session(other)
    assert await store.sessions() == [other, SESSION]


async def test_a_session_without_a_client_id_has_no_row(store: Store) -> None:
    with pytest.raises(ValueError, match="not durable"):
        await store.save_session(Session(client_id="", mapping="demo"))


async def test_a_forgotten_session_is_gone_and_may_be_forgotten_again(store: Store) -> None:
    await store.save_session(SESSION)
    await store.forget_session("base-demo")
    await store.forget_session("base-demo")
    assert await store.sessions() == []


async def test_deleting_a_mapping_asks_for_all_its_sessions_to_be_ended(store: Store) -> None:
    old = Session(client_id="old", mapping="demo", established=True)
    others = Session(client_id="others", mapping="other")
    await store.create(mapping())
    for session in (SESSION, old, others):
        await store.save_session(session)
    await store.delete("demo", expected=None)
    assert await store.sessions() == [
        replace(SESSION, removal_pending=True),
        replace(old, removal_pending=True),
        others,
    ]


async def test_a_cancelled_removal_begins_afresh_for_the_new_mapping(store: Store) -> None:
    await store.save_session(replace(SESSION, removal_pending=True))
    taken = await store.cancel_removal("base-demo", "heir")
    assert taken == replace(SESSION, mapping="heir", clean_start=True)
    assert await store.session("base-demo") == taken


async def test_there_is_nothing_to_cancel_where_no_removal_is_pending(store: Store) -> None:
    await store.save_session(SESSION)
    assert await store.cancel_removal("base-demo", "heir") is None
    assert await store.cancel_removal("unknown", "heir") is None
    assert await store.session("base-demo") == SESSION


async def test_creating_a_mapping_takes_back_a_session_that_was_to_be_ended(store: Store) -> None:
    await store.save_session(replace(SESSION, removal_pending=True))
    await store.create(mapping("heir", client_id="base-demo"))
    assert await store.session("base-demo") == replace(SESSION, mapping="heir", clean_start=True)


async def test_changing_to_a_client_id_takes_back_its_session(store: Store) -> None:
    await store.save_session(replace(SESSION, removal_pending=True))
    await store.create(mapping("heir"))
    await store.change("heir", lambda _: mapping("heir", client_id="base-demo"), expected=1, action="change")
    assert await store.session("base-demo") == replace(SESSION, mapping="heir", clean_start=True)


async def test_the_file_takes_back_a_session_of_a_mapping_it_renames(store: Store) -> None:
    await store.apply_file([(mapping("old", client_id="c"), "1")], prune=True)
    await store.save_session(replace(SESSION, client_id="c", mapping="old"))
    await store.apply_file([(mapping("new", client_id="c"), "2")], prune=True)
    assert await store.session("c") == replace(SESSION, client_id="c", mapping="new", clean_start=True)
