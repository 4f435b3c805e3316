"""The ledger: what the store did not take is neither forgotten nor written in the wrong order."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING, cast

import pytest
import structlog
from hypothesis import given, settings
from hypothesis import strategies as st

from server.core.subscription import Session
from server.runtime.ledger import MOST_AT_ONCE, Ledger
from server.store.errors import StoreUnavailableError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from server.store.store import Store
    from server.store.stored import SessionChange

_A = Session("a", "one")
_B = Session("b", "two")


class FakeStore:
    """Sessions by client id. Writes wait for `gate`, and take effect in the order of the calls, as in one thread."""

    def __init__(self, *rows: Session) -> None:
        self.rows = {row.client_id: row for row in rows}
        self.away = False
        self.gate = asyncio.Event()
        self.gate.set()
        self.writes = 0
        self.most = self.left = 1_000_000  # changes in a transaction, and transactions until it is away
        self.asked: list[tuple[bool, bool]] = []

    async def sessions(self) -> list[Session]:
        self._check()
        rows = list(self.rows.values())
        await self.gate.wait()
        return rows

    async def write_sessions(self, changes: Sequence[SessionChange]) -> list[Session | None]:
        if len(changes) > self.most or self.writes >= self.left:
            raise StoreUnavailableError("it did not answer within 2 s")
        self._check()
        self.writes += 1
        for change in changes:
            self.asked.append((change.claims, change.began_afresh))
            if change.session is None:
                self.rows.pop(change.client_id, None)
            else:
                self.rows[change.client_id] = change.session
        await self.gate.wait()
        return [change.session for change in changes]

    def _check(self) -> None:
        if self.away:
            raise StoreUnavailableError("the disk is full")


def _ledger(store: FakeStore) -> Ledger:
    return Ledger(cast("Store", store))


async def test_it_knows_what_the_store_knows_once_loaded() -> None:
    gone = replace(_B, removal_pending=True)
    ledger = _ledger(FakeStore(_A, gone))
    assert ledger.session("a") is None
    await ledger.load()
    assert ledger.session("a") == _A
    assert ledger.of_mapping("one") == [_A]
    assert ledger.of_mapping("two") == []
    assert (ledger.owner("a"), ledger.owner("b")) == ("one", None)
    assert ledger.removals() == [gone]


async def test_it_can_not_be_loaded_without_the_store() -> None:
    store = FakeStore()
    store.away = True
    with pytest.raises(StoreUnavailableError):
        await _ledger(store).load()


async def test_a_saved_row_is_in_the_store_and_a_forgotten_one_is_not() -> None:
    store = FakeStore(_B)
    ledger = _ledger(store)
    await ledger.load()
    await ledger.save(_A)
    await ledger.forget("b")
    assert store.rows == {"a": _A}
    assert (ledger.session("a"), ledger.session("b")) == (_A, None)


async def test_what_is_unknown_can_be_forgotten() -> None:
    await _ledger(FakeStore()).forget("nobody")


async def test_without_the_store_it_goes_on_and_writes_later() -> None:
    store = FakeStore(_B)
    ledger = _ledger(store)
    await ledger.load()
    store.away = True
    with structlog.testing.capture_logs() as logs:
        await ledger.save(_A)
        await ledger.forget("b")
    assert [entry["event"] for entry in logs] == ["sessions_not_saved"], "the same is said once"
    assert (ledger.session("a"), ledger.session("b")) == (_A, None)
    assert store.rows == {"b": _B}
    store.away = False
    await ledger.flush()
    assert store.rows == {"a": _A}
    await ledger.flush()
    assert store.writes == 1, "all together"


async def test_a_mapping_that_comes_back_begins_the_session_afresh_that_was_to_be_ended() -> None:
    store = FakeStore(replace(_A, removal_pending=True), _B)
    ledger = _ledger(store)
    await ledger.load()
    await ledger.claim("a", "other")
    await ledger.claim("b", "two")
    await ledger.claim("c", "new")
    assert store.rows == {"a": Session("a", "other", clean_start=True), "b": _B}
    assert store.writes == 1


async def test_a_session_that_another_mapping_takes_over_is_only_renamed() -> None:
    store = FakeStore(_B)
    ledger = _ledger(store)
    await ledger.load()
    await ledger.claim("b", "other")
    assert store.rows == {"b": replace(_B, mapping="other")}


async def test_the_store_decides_what_is_wanted_of_a_session(monkeypatch: pytest.MonkeyPatch) -> None:
    store = FakeStore(_A)
    ledger = _ledger(store)
    await ledger.load()

    async def deleted_meanwhile(changes: Sequence[SessionChange]) -> list[Session]:
        return [replace(change.session, removal_pending=True) for change in changes if change.session]

    monkeypatch.setattr(store, "write_sessions", deleted_meanwhile)
    await ledger.save(replace(_A, last_identifier=3))
    assert ledger.removals() == [replace(_A, last_identifier=3, removal_pending=True)]


async def test_what_the_store_did_not_take_is_claimed_all_the_same_later() -> None:
    store = FakeStore(replace(_A, removal_pending=True))
    ledger = _ledger(store)
    await ledger.load()
    store.away = True
    await ledger.claim("a", "one")
    await ledger.save(_A, began_afresh=True)
    store.away = False
    await ledger.flush()
    assert store.asked == [(True, True)]
    assert store.rows == {"a": _A}


async def test_refresh_takes_over_what_the_api_changed() -> None:
    store = FakeStore(_A)
    ledger = _ledger(store)
    await ledger.load()
    store.rows = {"a": replace(_A, removal_pending=True)}
    await ledger.refresh()
    assert ledger.removals() == [replace(_A, removal_pending=True)]


async def test_refresh_does_not_undo_what_the_store_has_not_taken() -> None:
    store = FakeStore()
    ledger = _ledger(store)
    store.away = True
    await ledger.save(_A)
    with pytest.raises(StoreUnavailableError):
        await ledger.refresh()
    assert ledger.session("a") == _A


async def test_refresh_does_not_undo_what_changed_while_it_read() -> None:
    store = FakeStore()
    ledger = _ledger(store)
    store.gate.clear()
    refreshing = asyncio.create_task(ledger.refresh())
    await asyncio.sleep(0)
    saving = asyncio.create_task(ledger.save(_A))
    await asyncio.sleep(0)
    store.gate.set()
    await asyncio.gather(refreshing, saving)
    assert ledger.session("a") == _A


async def test_two_writers_that_forget_the_same_session_do_not_trip_over_each_other() -> None:
    store = FakeStore(_A)
    ledger = _ledger(store)
    await ledger.load()
    store.gate.clear()
    both = [asyncio.create_task(ledger.forget("a")), asyncio.create_task(ledger.flush())]
    await asyncio.sleep(0)
    store.gate.set()
    await asyncio.gather(*both)
    assert store.rows == {}


async def test_an_older_row_is_not_written_after_a_newer_one() -> None:
    store = FakeStore()
    ledger = _ledger(store)
    store.away = True
    with structlog.testing.capture_logs():
        await ledger.save(_A)
        await ledger.save(_B)
    store.away = False
    store.gate.clear()
    slow = asyncio.create_task(ledger.flush())  # has seen the old row of b, and waits for a
    await asyncio.sleep(0)
    newer = replace(_B, established=True)
    fast = asyncio.create_task(ledger.save(newer))
    await asyncio.sleep(0)
    store.gate.set()
    await asyncio.gather(slow, fast)
    assert store.rows["b"] == newer


_CHANGES = st.lists(st.tuples(st.sampled_from(["save", "forget", "flush", "turn"]), st.sampled_from("ab")), max_size=25)


@settings(deadline=None, max_examples=150)
@given(changes=_CHANGES, away=st.lists(st.booleans(), max_size=25))
def test_in_the_end_the_store_holds_the_last_word_on_every_session(
    changes: list[tuple[str, str]], away: list[bool]
) -> None:
    async def history() -> None:
        store = FakeStore()
        ledger = _ledger(store)
        tasks: list[asyncio.Task[None]] = []
        last: dict[str, Session] = {}
        for number, (change, client_id) in enumerate(changes):
            store.away = number < len(away) and away[number]
            # The gate is shut for writes under way and opened one event loop turn later.
            store.gate.clear()
            if change == "save":
                last[client_id] = Session(client_id, "m", last_identifier=number)
                tasks.append(asyncio.create_task(ledger.save(last[client_id])))
            elif change == "forget":
                last.pop(client_id, None)
                tasks.append(asyncio.create_task(ledger.forget(client_id)))
            elif change == "flush":
                tasks.append(asyncio.create_task(ledger.flush()))
            else:
                store.gate.set()
            await asyncio.sleep(0)
        store.gate.set()
        await asyncio.gather(*tasks)
        store.away = False
        await ledger.flush()
        assert store.rows == last
        assert {row.client_id: row for row in ledger.of_mapping("m")} == last

    with structlog.testing.capture_logs():
        asyncio.run(history())


async def test_many_mappings_that_start_together_are_written_together() -> None:
    store = FakeStore()
    ledger = _ledger(store)
    store.gate.clear()
    rows = [Session(f"c{n}", f"m{n}") for n in range(50)]
    saving = [asyncio.create_task(ledger.save(row)) for row in rows]
    await asyncio.sleep(0)
    store.gate.set()
    await asyncio.gather(*saving)
    assert list(store.rows.values()) == rows
    assert store.writes == 2, "the first, and all that came while it was written"


async def test_hundreds_of_changes_are_written_in_parts_that_a_busy_store_can_take() -> None:
    store = FakeStore()
    store.most = MOST_AT_ONCE
    ledger = _ledger(store)
    rows = [Session(f"c{n}", "m") for n in range(3 * MOST_AT_ONCE + 1)]
    store.gate.clear()
    saving = [asyncio.create_task(ledger.save(row)) for row in rows]
    await asyncio.sleep(0)
    store.gate.set()
    await asyncio.gather(*saving)
    assert list(store.rows.values()) == rows
    assert store.writes <= 6


async def test_what_was_written_before_the_store_went_away_is_not_written_again() -> None:
    store = FakeStore()
    store.away = True
    ledger = _ledger(store)
    rows = [Session(f"c{n}", "m") for n in range(2 * MOST_AT_ONCE)]
    await asyncio.gather(*(ledger.save(row) for row in rows))
    store.away, store.left = False, 1
    await ledger.flush()
    assert list(store.rows.values()) == rows[:MOST_AT_ONCE]
    store.left = 100
    await ledger.flush()
    assert list(store.rows.values()) == rows
    assert len(store.asked) == len(rows)
