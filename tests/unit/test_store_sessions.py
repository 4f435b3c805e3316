"""Sessions in the store: remembered by client id, marked for removal, and taken back."""

from __future__ import annotations

import random
import string
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from server.core.mapping import Mapping
from server.core.subscription import Session, Subscription
from server.store.errors import MappingNotFoundError, MappingNotPausedError
from server.store.store import Store
from server.store.stored import SessionChange

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

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
async def store(database_url: str) -> AsyncIterator[Store]:
    """A store without mappings, where rows of sessions have to claim what they want."""
    store = Store(database_url, client_id_of=lambda spec: spec.client_id("base"))
    await store.open()
    yield store
    await store.close()


async def save(store: Store, session: Session) -> None:
    """Write the row as it is."""
    await store.write_sessions([SessionChange(session.client_id, session, claims=True)])


async def observe(store: Store, session: Session, *, began_afresh: bool = False) -> Session | None:
    """Write what was observed of a session."""
    (row,) = await store.write_sessions([SessionChange(session.client_id, session, began_afresh=began_afresh)])
    return row


async def forget(store: Store, client_id: str) -> None:
    """The session is gone."""
    await store.write_sessions([SessionChange(client_id, None)])


async def test_a_saved_session_is_found_again(store: Store) -> None:
    await save(store, SESSION)
    assert await store.session("base-demo") == SESSION
    assert await store.session("other") is None


async def test_saving_a_session_again_replaces_it(store: Store) -> None:
    await save(store, SESSION)
    await save(store, SESSION.ended())
    assert await store.sessions() == [SESSION.ended()]


async def test_sessions_come_by_client_id(store: Store) -> None:
    other = Session(client_id="a", mapping="demo")
    await save(store, SESSION)
    await save(store, other)
    assert await store.sessions() == [other, SESSION]


async def test_a_session_without_a_client_id_has_no_row(store: Store) -> None:
    with pytest.raises(ValueError, match="not durable"):
        await save(store, Session(client_id="", mapping="demo"))


async def test_a_forgotten_session_is_gone_and_may_be_forgotten_again(store: Store) -> None:
    await save(store, SESSION)
    await forget(store, "base-demo")
    await forget(store, "base-demo")
    assert await store.sessions() == []


async def test_deleting_a_mapping_asks_for_all_its_sessions_to_be_ended(store: Store) -> None:
    old = Session(client_id="old", mapping="demo", established=True)
    others = Session(client_id="others", mapping="other")
    await store.create(mapping())
    for session in (SESSION, old, others):
        await save(store, session)
    await store.delete("demo", expected=None)
    assert await store.sessions() == [
        replace(SESSION, removal_pending=True),
        replace(old, removal_pending=True),
        others,
    ]


async def test_what_was_observed_of_a_session_leaves_what_is_wanted_of_it(store: Store) -> None:
    wanted = replace(SESSION, mapping="heir", removal_pending=True, clean_start=True)
    await save(store, wanted)
    observed = replace(SESSION, subscriptions=(), last_identifier=9)
    stored = await observe(store, observed)
    assert stored == replace(wanted, subscriptions=(), last_identifier=9)
    assert await store.session("base-demo") == stored


async def test_a_session_that_began_afresh_needs_no_clean_start_any_more(store: Store) -> None:
    await save(store, replace(SESSION, clean_start=True))
    stored = await observe(store, SESSION, began_afresh=True)
    assert stored == SESSION


async def test_a_session_whose_mapping_was_deleted_before_it_had_a_row_is_to_be_ended(store: Store) -> None:
    stored = await observe(store, SESSION)
    assert stored == replace(SESSION, removal_pending=True)
    await store.create(mapping("other"))
    session = replace(SESSION, client_id="base-other", mapping="other")
    assert await observe(store, session) == session


async def test_resetting_asks_for_all_sessions_of_a_paused_mapping_to_be_ended(store: Store) -> None:
    await store.create(mapping().model_copy(update={"paused": True}))
    await save(store, SESSION)
    await store.reset_sessions("demo", detail={"lost": "all"})
    assert await store.session("base-demo") == replace(SESSION, removal_pending=True)
    (event, _) = await store.events(limit=2)
    assert (event.action, event.detail) == ("reset session", {"lost": "all"})


async def test_sessions_are_reset_only_of_a_mapping_that_is_paused(store: Store) -> None:
    await store.create(mapping())
    await save(store, SESSION)
    with pytest.raises(MappingNotPausedError, match="pause it first"):
        await store.reset_sessions("demo", detail={})
    assert await store.session("base-demo") == SESSION
    with pytest.raises(MappingNotFoundError):
        await store.reset_sessions("other", detail={})


async def test_creating_a_mapping_takes_back_a_session_that_was_to_be_ended(store: Store) -> None:
    await save(store, replace(SESSION, removal_pending=True))
    await store.create(mapping("heir", client_id="base-demo"))
    assert await store.session("base-demo") == replace(SESSION, mapping="heir", clean_start=True)


async def test_changing_to_a_client_id_takes_back_its_session(store: Store) -> None:
    await save(store, replace(SESSION, removal_pending=True))
    await store.create(mapping("heir"))
    await store.change("heir", lambda _: mapping("heir", client_id="base-demo"), expected=1, action="change")
    assert await store.session("base-demo") == replace(SESSION, mapping="heir", clean_start=True)


async def test_the_file_takes_back_a_session_of_a_mapping_it_renames(store: Store) -> None:
    await store.apply_file([(mapping("old", client_id="c"), "1")], prune=True)
    await save(store, replace(SESSION, client_id="c", mapping="old"))
    await store.apply_file([(mapping("new", client_id="c"), "2")], prune=True)
    assert await store.session("c") == replace(SESSION, client_id="c", mapping="new", clean_start=True)


async def test_the_longest_client_id_there_can_be_is_kept(store: Store) -> None:
    # Nothing that could be compressed.
    draw = random.Random(1)  # noqa: S311 - not a secret
    base = "".join(draw.choices(string.ascii_letters + string.digits, k=1_024))
    name = "".join(chr(draw.randrange(0x10000, 0x20000)) for _ in range(128))
    session = replace(SESSION, client_id=f"{base}-{name}", mapping=name)
    await save(store, session)
    assert await store.session(session.client_id) == session
