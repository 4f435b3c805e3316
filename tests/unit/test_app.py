"""The composition root: one process per store, the file applied first, and a crash that is never silent."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import structlog

from server.app import Service, opened
from server.config.load import load_config
from server.core.subscription import Session
from server.runtime.supervisor import Supervisor
from server.settings import Settings
from server.store.errors import StoreError, StoreUnavailableError
from server.store.lock import StoreLock, lock_at
from server.store.store import Store
from server.store.stored import SessionChange
from tests.virtualtime import in_virtual_time, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, MutableMapping
    from pathlib import Path

    from server.core.mapping import Mapping
    from server.runtime.health import Health

ENTRY = """
  - name: {name}
    mqtt: {{topic: "{name}/#"}}
    kafka: {{topic: k}}
"""


def _service(folder: Path, *names: str, **settings: Any) -> Service:
    """A service whose file has these entries, all paused in the store before they could run."""
    file = folder / "config.yaml"
    head = "mqtt: {host: localhost, client_id: base}\nkafka: {bootstrap_server: localhost}\n"
    entries = "".join(ENTRY.format(name=name) for name in names)
    file.write_text(head + ("forwarding:" + entries if names else "forwarding: []\n"))
    url = f"sqlite:///{folder}/mkf.db"
    return Service(Settings(database_url=url, memory_budget=10**8, **settings), load_config(file, {}))


def _health(service: Service) -> Health:
    return service._supervisor.health()


@asynccontextmanager
async def _running(service: Service) -> AsyncIterator[Service]:
    async with opened(service), service.api.router.lifespan_context(service.api):
        yield service


@pytest.fixture(autouse=True)
def _nothing_connects(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Supervisor, "_decide", lambda _: [])


@in_virtual_time
async def test_it_applies_the_file_and_then_runs(tmp_path: Path) -> None:
    with structlog.testing.capture_logs() as logs:
        async with _running(_service(tmp_path, "a", "b")) as service:
            await until(lambda: _health(service).started)
            assert [stored.spec.name for stored in await service.store.mappings()] == ["a", "b"]
            assert _health(service).supervisor_running
    assert not service.crashed
    (applied,) = [entry for entry in logs if entry["event"] == "configuration_applied"]
    assert applied["created"] == ["a", "b"]
    with pytest.raises(StoreUnavailableError):
        await service.store.ping()


@in_virtual_time
async def test_a_second_process_waits_for_the_store_and_says_for_whom(tmp_path: Path) -> None:
    first = lock_at(f"sqlite:///{tmp_path}/mkf.db")
    assert await first.try_acquire()
    with structlog.testing.capture_logs() as logs:
        async with _running(_service(tmp_path, "a")) as service:
            await asyncio.sleep(5)
            health = _health(service)
            assert not health.started
            assert health.waiting_for is not None
            assert "in use by another process (pid " in health.waiting_for
            assert await service.store.mappings() == []
            await first.release()
            await until(lambda: _health(service).started)
            assert _health(service).waiting_for is None
    assert [entry["event"] for entry in logs].count("waiting") == 1
    again = lock_at(f"sqlite:///{tmp_path}/mkf.db")
    assert await again.try_acquire(), "the lock was not given back"
    await again.release()


@in_virtual_time
async def test_a_lock_that_can_not_be_used_is_said_before_anything_listens(tmp_path: Path) -> None:
    (tmp_path / "mkf.db.lock").mkdir()
    with pytest.raises(StoreError, match=r"mkf\.db\.lock can't be used"):
        async with opened(_service(tmp_path, "a")):
            pytest.fail("it went on")


@in_virtual_time
async def test_what_was_opened_and_never_ran_gives_its_lock_back(tmp_path: Path) -> None:
    async with opened(_service(tmp_path, "a")):
        assert not await lock_at(f"sqlite:///{tmp_path}/mkf.db").try_acquire()
    again = lock_at(f"sqlite:///{tmp_path}/mkf.db")
    assert await again.try_acquire()
    await again.release()


@in_virtual_time
async def test_a_shutdown_while_it_waits_for_the_store_is_no_crash(tmp_path: Path) -> None:
    first = lock_at(f"sqlite:///{tmp_path}/mkf.db")
    assert await first.try_acquire()
    async with _running(_service(tmp_path)) as service:
        await asyncio.sleep(1)
    assert not service.crashed
    await first.release()


@in_virtual_time
async def test_a_store_that_is_unavailable_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    apply = Store.apply_file
    failures = [StoreUnavailableError("the disk is full")] * 3

    async def sometimes(self: Store, entries: Any, *, prune: bool) -> Any:
        if failures:
            raise failures.pop()
        return await apply(self, entries, prune=prune)

    monkeypatch.setattr(Store, "apply_file", sometimes)
    async with _running(_service(tmp_path, "a")) as service:
        await until(lambda: "the disk is full" in (_health(service).waiting_for or ""))
        await until(lambda: _health(service).started)
        assert [stored.spec.name for stored in await service.store.mappings()] == ["a"]


@in_virtual_time
async def test_a_crash_of_the_part_that_forwards_is_said_and_ends_the_service(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(_: Supervisor) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(Supervisor, "run", broken)
    service = _service(tmp_path)
    ended = asyncio.Event()
    service.on_crash = ended.set
    with structlog.testing.capture_logs() as logs:
        async with _running(service):
            await ended.wait()
            assert service.crashed
    (crash,) = [entry for entry in logs if entry["event"] == "service_crashed"]
    assert isinstance(crash["exc_info"], ZeroDivisionError)


@pytest.mark.parametrize(("host", "status"), [("127.0.0.1", 403), ("localhost", 403), ("0.0.0.0", 200)])
async def test_only_a_service_on_loopback_minds_by_which_name_it_is_called(
    tmp_path: Path, host: str, status: int
) -> None:
    api = _service(tmp_path, host=host).api
    async with httpx.AsyncClient(transport=httpx.ASGITransport(api), base_url="http://evil.example") as client:
        assert (await client.get("/livez")).status_code == status


def _events(logs: list[MutableMapping[str, Any]], event: str) -> list[MutableMapping[str, Any]]:
    return [entry for entry in logs if entry["event"] == event]


@in_virtual_time
async def test_a_mapping_removed_from_the_file_is_named_with_its_client_ids_before_it_is_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with _running(_service(tmp_path, "a", "b")) as service:
        await until(lambda: _health(service).started)
        await service.store.write_sessions([SessionChange("former-a", Session(client_id="former-a", mapping="a"))])
    apply, told_when_applying = Store.apply_file, []

    async def observed(self: Store, entries: Any, *, prune: bool) -> Any:
        told_when_applying.extend(_events(logs, "mapping_removed_from_file"))
        return await apply(self, entries, prune=prune)

    monkeypatch.setattr(Store, "apply_file", observed)
    with structlog.testing.capture_logs() as logs:
        async with _running(_service(tmp_path, "b")) as service:
            await until(lambda: _health(service).started)
            assert [stored.spec.name for stored in await service.store.mappings()] == ["b"]
    (removed,) = told_when_applying
    assert (removed["mapping"], removed["client_ids"]) == ("a", ["former-a"])


@in_virtual_time
async def test_without_pruning_a_mapping_removed_from_the_file_is_paused(tmp_path: Path) -> None:
    async with _running(_service(tmp_path, "a", "b")) as service:
        await until(lambda: _health(service).started)
    async with _running(_service(tmp_path, "b", prune=False)) as service:
        await until(lambda: _health(service).started)
        assert [stored.spec.paused for stored in await service.store.mappings()] == [True, False]


@in_virtual_time
async def test_an_entry_skipped_for_a_mapping_of_the_api_is_a_warning_in_its_status(tmp_path: Path) -> None:
    def paused(spec: Mapping) -> Mapping:
        return spec.model_copy(update={"paused": True})

    async with _running(_service(tmp_path, "a")) as service:
        await until(lambda: _health(service).started)
        spec = (await service.store.mapping("a")).spec.model_copy(update={"name": "mine"})
        await service.store.create(paused(spec.model_copy(update={"name": "mine"})))
    with structlog.testing.capture_logs() as logs:
        async with _running(_service(tmp_path, "a", "mine")) as service:
            await until(lambda: _health(service).started)
            status = service._supervisor.status(await service.store.mapping("mine"))
            assert any("'mine'" in warning for warning in status.warnings)
    assert any("'mine'" in entry["detail"] for entry in _events(logs, "configuration"))


class ScriptedLock(StoreLock):
    """A lock that is `theirs`, or `lost` to nobody, or that nothing can be said of, as the test wants it."""

    takeover_seconds = 5.0

    def __init__(self) -> None:
        self.theirs = False
        self.lost = False
        self.away = False
        self.acquired = 0
        self.lost_at_once = 0

    async def try_acquire(self) -> bool:
        self._reach()
        if self.theirs:
            return False
        self.acquired += 1
        self.lost = self.acquired <= self.lost_at_once
        return True

    async def holder(self) -> str:
        self._reach()
        return "mkf pid 7 on b"

    async def check(self) -> None:
        self._reach()
        if self.lost:
            raise StoreUnavailableError("its session broke")

    async def release(self) -> None:
        pass

    def _reach(self) -> None:
        if self.away:
            raise StoreUnavailableError("the server is away")


@pytest.fixture
def lock(monkeypatch: pytest.MonkeyPatch) -> ScriptedLock:
    scripted = ScriptedLock()
    monkeypatch.setattr("server.app.lock_at", lambda _: scripted)
    return scripted


@in_virtual_time
async def test_a_lock_that_is_lost_to_nobody_is_taken_again_and_all_goes_on(tmp_path: Path, lock: ScriptedLock) -> None:
    with structlog.testing.capture_logs() as logs:
        async with _running(_service(tmp_path, "a")) as service:
            await until(lambda: _health(service).started)
            acquired, revision = lock.acquired, service.store.revision
            lock.lost = lock.away = True
            await asyncio.sleep(60)
            assert _health(service).started, "while nobody can have it, the mappings go on"
            assert _health(service).supervisor_running
            lock.away = False
            await until(lambda: lock.acquired > acquired)
            await asyncio.sleep(10)
            assert _health(service).supervisor_running
            assert service.store.revision > revision, "another may have had it, and written"
    assert [entry["event"] for entry in logs if "lock" in entry["event"]] == ["store_lock_lost", "store_lock_regained"]


@in_virtual_time
async def test_a_lock_that_is_lost_before_the_file_is_applied_is_taken_again(
    tmp_path: Path, lock: ScriptedLock, monkeypatch: pytest.MonkeyPatch
) -> None:
    apply = Store.apply_file

    async def fenced(self: Store, entries: Any, *, prune: bool) -> Any:
        if lock.lost:
            raise StoreUnavailableError("is not this process's at the moment")
        return await apply(self, entries, prune=prune)

    monkeypatch.setattr(Store, "apply_file", fenced)
    lock.lost_at_once = 2
    async with _running(_service(tmp_path, "a")) as service:
        await until(lambda: _health(service).started)
        assert lock.acquired == 3
        assert [stored.spec.name for stored in await service.store.mappings()] == ["a"]


@in_virtual_time
async def test_a_lock_that_another_process_took_stops_everything_until_it_is_free_again(
    tmp_path: Path, lock: ScriptedLock
) -> None:
    async with _running(_service(tmp_path, "a")) as service:
        await until(lambda: _health(service).started)
        lock.lost = lock.theirs = True
        began = asyncio.get_running_loop().time()
        await until(lambda: not _health(service).started)
        assert asyncio.get_running_loop().time() - began <= 2
        await until(lambda: not _health(service).supervisor_running)
        assert _health(service).waiting_for == "the store is in use by another process (mkf pid 7 on b)"
        transport = httpx.ASGITransport(service.api)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            response = await client.get("/api/v1/mappings")
        assert response.status_code == 503
        assert "mkf pid 7 on b" in response.text
        await asyncio.sleep(30)
        assert not service.crashed
        lock.theirs = False
        freed = asyncio.get_running_loop().time()
        await until(lambda: _health(service).started)
        assert asyncio.get_running_loop().time() - freed >= lock.takeover_seconds
        assert _health(service).waiting_for is None


@in_virtual_time
async def test_who_waits_for_the_lock_lets_its_holder_have_it_back_first_when_the_server_returns(
    tmp_path: Path, lock: ScriptedLock
) -> None:
    lock.theirs = True
    async with _running(_service(tmp_path, "a")) as service:
        await until(lambda: "mkf pid 7" in (_health(service).waiting_for or ""))
        lock.away = True
        await until(lambda: "the server is away" in (_health(service).waiting_for or ""))
        lock.away = lock.theirs = False
        returned = asyncio.get_running_loop().time()
        await until(lambda: lock.acquired > 0)
        assert asyncio.get_running_loop().time() - returned >= lock.takeover_seconds


@in_virtual_time
async def test_a_server_that_comes_later_is_waited_for(
    tmp_path: Path, lock: ScriptedLock, monkeypatch: pytest.MonkeyPatch
) -> None:
    opens, failures = Store.open, [StoreUnavailableError("the server is away")] * 3

    async def sometimes(self: Store) -> None:
        if failures:
            raise failures.pop()
        await opens(self)

    monkeypatch.setattr(Store, "open", sometimes)
    monkeypatch.setattr(Store, "remote", True)
    with structlog.testing.capture_logs() as logs:
        async with _running(_service(tmp_path, "a")) as service:
            await until(lambda: (_health(service).waiting_for or "") == "the store can't be opened: the server is away")
            assert not _health(service).started
            await until(lambda: _health(service).started)
            assert [stored.spec.name for stored in await service.store.mappings()] == ["a"]
    assert len(_events(logs, "waiting")) == 2, "each reason is said once"
    assert lock.acquired > 0


@in_virtual_time
async def test_a_server_that_comes_later_and_is_the_wrong_one_ends_the_service_with_that_reason(
    tmp_path: Path, lock: ScriptedLock, monkeypatch: pytest.MonkeyPatch
) -> None:
    failures: list[StoreError] = [StoreError("another program's"), StoreUnavailableError("the server is away")]

    async def fail(_: Store) -> None:
        raise failures.pop()

    monkeypatch.setattr(Store, "open", fail)
    monkeypatch.setattr(Store, "remote", True)
    ended = asyncio.Event()
    with structlog.testing.capture_logs() as logs:
        service = _service(tmp_path, "a")
        service.on_crash = ended.set
        async with _running(service):
            await ended.wait()
    assert str(service.refused) == "another program's"
    assert _events(logs, "service_crashed") == []
    assert lock.acquired == 0
