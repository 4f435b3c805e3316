"""What happens to an open store: locked, full, removed, too slow, callers that go away. It says so and recovers."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
import subprocess
import threading
import time
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import text

from server.core.mapping import Mapping
from server.store import location
from server.store.errors import StoreUnavailableError
from server.store.store import Store

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from sqlmodel import Session as Transaction

_ENDLESS = text("WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n")


def mapping(name: str = "demo", **fields: Any) -> Mapping:
    return Mapping.model_validate({"name": name, "mqtt": {"topic": "demo/#"}, "kafka": {"topic": "demo"}, **fields})


def pause(spec: Mapping) -> Mapping:
    return spec.model_copy(update={"paused": True})


class HeldEdit:
    """An edit that pauses the mapping, but not before it is let go; the store's thread waits in it."""

    def __init__(self) -> None:
        self.begun = asyncio.Event()
        self.let_go = threading.Event()
        self._loop = asyncio.get_running_loop()

    def __call__(self, spec: Mapping) -> Mapping:
        self._loop.call_soon_threadsafe(self.begun.set)
        assert self.let_go.wait(20)
        return pause(spec)


def fill(path: Path) -> None:
    """Write to `path` until its disk is full."""
    with path.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
    assert os.statvfs(path).f_bfree == 0


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    store = Store(f"sqlite:///{tmp_path}/store.db", client_id_of=lambda spec: spec.client_id("base"))
    await store.open()
    yield store
    await store.close()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Return the folder of a file system of 1 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], check=False).returncode:
        pytest.skip("mounting a file system needs root")
    yield folder
    subprocess.run(["umount", folder], check=True)


async def test_a_healthy_store_answers(store: Store) -> None:
    await store.ping()
    await store.ping()


async def test_a_store_that_is_not_open_is_unavailable(tmp_path: Path) -> None:
    store = Store(f"sqlite:///{tmp_path}/store.db", client_id_of=lambda _: "")
    for call in (store.ping(), store.mappings(), store.create(mapping())):
        with pytest.raises(StoreUnavailableError, match="not open"):
            await call
    await store.close()


async def test_a_closed_store_leaves_no_thread_and_no_log_behind(store: Store, tmp_path: Path) -> None:
    await store.create(mapping())
    [thread] = [each for each in threading.enumerate() if each.name.startswith("store")]
    await store.close()
    await store.close()
    thread.join(5)
    assert not thread.is_alive()
    assert [path.name for path in tmp_path.iterdir()] == ["store.db"]


async def test_a_store_locked_by_another_program_says_so_within_2_s_and_recovers(store: Store, tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "store.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        began = time.monotonic()
        outcomes = await asyncio.gather(*(store.ping() for _ in range(3)), return_exceptions=True)
        assert time.monotonic() - began < 5, "one after the other they would take 6 s"
        assert [type(each) for each in outcomes] == [StoreUnavailableError] * 3
        assert "locked by another program" in str(outcomes[0])
        assert await store.mappings() == [], "readers don't wait for writers"
    await store.ping()


async def test_a_lock_that_is_released_in_time_is_waited_for(store: Store, tmp_path: Path) -> None:
    other = sqlite3.connect(tmp_path / "store.db", isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    asyncio.get_running_loop().call_later(0.2, other.rollback)
    assert (await store.create(mapping())).generation == 1
    other.close()


async def test_a_statement_that_takes_too_long_is_interrupted_and_the_next_call_works(store: Store) -> None:
    with pytest.raises(StoreUnavailableError, match=r"did not answer within 0\.2 s"):
        await store._write(lambda transaction: transaction.connection().execute(_ENDLESS).all(), limit=0.2)
    assert (await store.create(mapping())).generation == 1


async def test_every_call_is_limited_to_2_s(store: Store) -> None:
    with pytest.raises(StoreUnavailableError, match="did not answer within 2 s"):
        await store._read(lambda transaction: transaction.connection().execute(_ENDLESS).all())
    await store.ping()


async def test_a_write_that_came_too_late_is_not_made(store: Store) -> None:
    await store.create(mapping())
    edit = HeldEdit()
    with pytest.raises(StoreUnavailableError):
        await store.change("demo", edit, expected=1, action="pause")
    edit.let_go.set()
    assert (await store.mapping("demo")).generation == 1


async def test_a_caller_cancelled_during_its_write_leaves_it_whole(store: Store) -> None:
    await store.create(mapping())
    edit = HeldEdit()
    caller = asyncio.create_task(store.change("demo", edit, expected=1, action="pause"))
    await edit.begun.wait()
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    edit.let_go.set()
    changed = await store.mapping("demo")
    assert (changed.spec.paused, changed.generation) == (True, 2)
    assert (await store.events(limit=1))[0].detail == {"generation": 2}


async def test_a_caller_cancelled_while_it_waits_for_its_turn_changes_nothing(store: Store) -> None:
    await store.create(mapping())
    edit = HeldEdit()
    first = asyncio.create_task(store.change("demo", edit, expected=1, action="pause"))
    await edit.begun.wait()
    second = asyncio.create_task(store.delete("demo", expected=None))
    await asyncio.sleep(0)
    second.cancel()
    with pytest.raises(asyncio.CancelledError):
        await second
    edit.let_go.set()
    assert (await first).generation == 2
    assert (await store.mapping("demo")).generation == 2


async def test_a_failure_of_a_cancelled_caller_is_not_reported_to_nobody(store: Store) -> None:
    complaints: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
    edit = HeldEdit()
    await store.create(mapping())
    caller = asyncio.create_task(store.change("demo", edit, expected=1, action="restart", anew=True))
    await edit.begun.wait()
    other = asyncio.create_task(store.change("demo", pause, expected=1, action="pause"))
    await asyncio.sleep(0)
    caller.cancel()
    edit.let_go.set()
    await asyncio.gather(caller, other, return_exceptions=True)
    assert complaints == []


async def test_a_removed_file_is_noticed_and_its_return_too(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    path.rename(tmp_path / "away.db")
    for call in (store.ping(), store.mappings(), store.create(mapping())):
        with pytest.raises(StoreUnavailableError, match=r"store\.db was removed while in use; put it back"):
            await call
    assert not path.exists(), "no empty one takes its place"
    (tmp_path / "away.db").rename(path)
    await store.ping()


async def test_a_replaced_file_is_noticed(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    (tmp_path / "backup.db").write_bytes(path.read_bytes())
    (tmp_path / "backup.db").replace(path)
    with pytest.raises(StoreUnavailableError, match="was replaced by another file while in use; restart"):
        await store.ping()


async def test_a_removed_write_ahead_log_is_noticed(store: Store, tmp_path: Path) -> None:
    (tmp_path / "store.db-wal").unlink()
    with pytest.raises(StoreUnavailableError, match=r"store\.db-wal was removed while in use"):
        await store.ping()


async def test_a_path_that_cannot_be_reached_is_unavailable(store: Store, tmp_path: Path) -> None:
    tmp_path.rename(tmp_path.with_name("away"))
    tmp_path.touch()
    with pytest.raises(StoreUnavailableError, match="can't be reached: Not a directory"):
        await store.ping()
    tmp_path.unlink()
    tmp_path.with_name("away").rename(tmp_path)
    await store.ping()


async def test_a_database_that_may_not_grow_says_it_is_full_and_changes_nothing(store: Store) -> None:
    def limit(transaction: Transaction) -> None:
        connection = transaction.connection()
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar()
        connection.exec_driver_sql(f"PRAGMA max_page_count = {pages}")

    await store._read(limit)
    with pytest.raises(StoreUnavailableError, match="the disk is full; free some space"):
        await store.create(mapping(kafka={"topic": "demo", "headers": {"h": "x" * 10_000}}))
    assert await store.mappings() == []
    await store.create(mapping())


async def test_a_database_that_turned_read_only_says_so(store: Store) -> None:
    await store._read(lambda transaction: transaction.connection().exec_driver_sql("PRAGMA query_only = 1"))
    with pytest.raises(StoreUnavailableError, match="can't be written to; give the service write permission"):
        await store.ping()


async def test_a_full_disk_is_noticed_before_it_hurts_and_its_end_too(small_disk: Path) -> None:
    store = Store(f"sqlite:///{small_disk}/store.db", client_id_of=lambda _: "")
    await store.open()
    await store.ping()
    filler = small_disk / "filler"
    fill(filler)
    with pytest.raises(StoreUnavailableError, match=r"disk of the store .* is full; free some space"):
        await store.ping()
    filler.unlink()
    await store.ping()
    await store.close()


async def test_a_full_disk_at_the_start_is_said_to_be_full(small_disk: Path) -> None:
    fill(small_disk / "filler")
    with pytest.raises(StoreUnavailableError, match="disk is full"):
        await Store(f"sqlite:///{small_disk}/store.db", client_id_of=lambda _: "").open()


async def test_a_disk_that_was_filled_while_the_service_was_away_is_said_to_be_full(small_disk: Path) -> None:
    store = Store(f"sqlite:///{small_disk}/store.db", client_id_of=lambda _: "")
    await store.open()
    await store.close()
    fill(small_disk / "filler")
    with pytest.raises(StoreUnavailableError, match=r"disk.* is full; free some space"):
        await store.open()


async def test_a_disk_that_fails_and_is_not_full_is_said_to_fail(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: Transaction) -> None:
        error = sqlite3.OperationalError("disk I/O error")
        error.sqlite_errorname = "SQLITE_IOERR_READ"
        raise error

    with pytest.raises(StoreUnavailableError, match="the disk reports an error; check the volume"):
        await store._read(broken)
    monkeypatch.setattr(location, "_LEAST_FREE_BYTES", 2**62)
    with pytest.raises(StoreUnavailableError, match="is full"):
        await store._read(broken)


def test_a_disk_that_cannot_be_asked_is_unavailable(tmp_path: Path) -> None:
    with pytest.raises(StoreUnavailableError, match="can't be reached: No such file"):
        location.check_space(tmp_path / "none")


async def test_a_damaged_file_is_unavailable_while_in_use(store: Store, tmp_path: Path) -> None:
    await store.create(mapping())
    await store.close()
    await store.open()
    with (tmp_path / "store.db").open("r+b") as file:
        size = os.fstat(file.fileno()).st_size
        file.seek(4096)
        file.write(b"\xa5" * (size - 4096))

    def read(transaction: Transaction) -> None:
        connection = transaction.connection()
        # What was read before is still in SQLite's cache.
        connection.exec_driver_sql("PRAGMA shrink_memory")
        connection.exec_driver_sql("SELECT * FROM mapping").all()

    with pytest.raises(StoreUnavailableError, match="is damaged"):
        await store._read(read)
