"""The lock on a store: one holder, named, and free again as soon as its process is gone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from server.store.errors import StoreError
from server.store.lock import lock_at

_HOLD = (
    "import asyncio, sys; from server.store.lock import lock_at;"
    "lock = lock_at(sys.argv[1]); print(asyncio.run(lock.try_acquire()), flush=True); sys.stdin.read()"
)


async def test_only_one_holds_the_lock_until_it_is_released(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/new/store.db"
    first, second = lock_at(url), lock_at(url)
    assert await first.try_acquire()
    assert await first.try_acquire(), "asking again changes nothing"
    assert not await second.try_acquire()
    assert (await second.holder()).startswith(f"pid {os.getpid()} on ")
    await first.release()
    assert await second.try_acquire()
    await second.release()
    await second.release()


async def test_two_names_of_one_file_are_one_lock(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "data")
    (tmp_path / "data").mkdir()
    lock = lock_at(f"sqlite:///{tmp_path}/data/store.db")
    assert await lock.try_acquire()
    assert not await lock_at(f"sqlite:///{tmp_path}/link/store.db").try_acquire()
    await lock.release()


async def test_the_death_of_the_holder_frees_the_lock(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/store.db"
    lock = lock_at(url)
    with subprocess.Popen(
        [sys.executable, "-c", _HOLD, url],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "True\n"
        assert not await lock.try_acquire()
        assert (await lock.holder()).startswith(f"pid {holder.pid} on ")
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    assert await lock.try_acquire()
    await lock.release()


async def test_a_store_in_memory_is_always_ours() -> None:
    first, second = lock_at("sqlite://"), lock_at("sqlite://")
    assert await first.try_acquire()
    assert await second.try_acquire()
    assert f"pid {os.getpid()}" in await second.holder()
    await first.release()


async def test_a_lock_file_that_is_gone_has_no_known_holder(tmp_path: Path) -> None:
    assert await lock_at(f"sqlite:///{tmp_path}/store.db").holder() == "another process"


async def test_a_lock_file_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "store.db.lock").mkdir()
    with pytest.raises(StoreError, match=r"store\.db\.lock can't be used: Is a directory"):
        await lock_at(f"sqlite:///{tmp_path}/store.db").try_acquire()


async def test_a_file_system_without_locks_is_an_error_and_not_a_busy_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_locks(_file: int, _operation: int) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr("server.store.file_lock.fcntl.flock", no_locks)
    with pytest.raises(StoreError, match="No locks available"):
        await lock_at(f"sqlite:///{tmp_path}/store.db").try_acquire()
