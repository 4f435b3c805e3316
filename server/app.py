"""The composition root: the only place where the parts are wired together."""

from __future__ import annotations

import asyncio
import contextlib
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import TYPE_CHECKING, ParamSpec, TypeVar

import structlog

from server.api.admin_token import AccessError, AdminToken
from server.api.application import create_api
from server.api.gate import Gate, Opening
from server.core.address import is_loopback
from server.core.kafka_options import translate
from server.files import on_change
from server.kafka.errorlog import ERROR_LOG
from server.kafka.producer import Cluster
from server.mqtt.connectors import connectors
from server.runtime.ending import end_unknown_session
from server.runtime.metrics import Metrics
from server.runtime.session import Broker
from server.runtime.supervisor import Supervisor
from server.store.errors import StoreError, StoreUnavailableError
from server.store.lock import lock_at
from server.store.store import Store
from server.tasks import ended
from server.ticks import sleep_to_tick

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from fastapi import FastAPI

    from server.config.load import Config
    from server.settings import Settings

_log = structlog.get_logger()

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")

_LOCK_POLL_SECONDS = 0.5
_LOCK_CHECK_SECONDS = 1.0
_STORE_RETRY_SECONDS = 2.0
_NOT_APPLIED = "the configuration file can't be applied"


class Service:
    """The whole service: store, supervisor and API, of one configuration.

    `on_crash` is called if the part that forwards ends although nobody asked it to; `crashed` says so afterwards, and
    `refused` why it would have refused to start, if that was it: a store's server that comes late may be the wrong one.

    Raises:
        StoreError: the store's URL can't be read, or names a database that is not supported.
    """

    def __init__(self, settings: Settings, config: Config) -> None:
        self.on_crash: Callable[[], None] = lambda: None
        self.crashed = False
        self.refused: StoreError | AccessError | None = None
        self._settings = settings
        self._config = config
        base, own_version = config.mqtt.client_id, version("mqtt-kafka-forwarder")
        self._lock = lock_at(settings.database_url)
        self.store = Store(settings.database_url, client_id_of=lambda spec: spec.client_id(base), lock=self._lock)
        self._told = ""
        self._applied = False
        self._admin_token = _admin_token(settings)
        self._gate = Gate(self.store.tokens, opening=_opening(settings), admin=self._admin_token)
        self._supervisor = Supervisor(
            self.store,
            Broker(config.mqtt, connectors()),
            Cluster(config.kafka.address, translate(config.kafka.config)),
            memory_budget=settings.memory_budget,
        )
        self.api: FastAPI = create_api(
            store=self.store,
            runtime=self._supervisor,
            gate=self._gate,
            ready_strict=settings.ready_strict,
            loopback_only=is_loopback(settings.host),
            metrics=Metrics(
                self._supervisor, version=own_version, seed_names=settings.seed_metrics, refusals=self._gate.refusals
            ).exposition,
            metrics_protected=settings.metrics_auth,
            version=own_version,
            lifespan=self._lifespan,
        )

    async def open(self) -> None:
        """Open the store, and see that somebody can use the API and that the lock can be had, now or later.

        A server that is away is waited for when the service runs.

        Raises:
            StoreError: the store or its lock can't be used.
            AccessError: nobody could use the API, or the first admin token can't be used.
        """
        try:
            await self.store.open()
            await self._gate.check()
            await self._lock.try_acquire()  # whoever holds it is waited for when the service runs
        except StoreUnavailableError as error:
            if not self.store.remote:
                raise
            self._waits(str(error))

    async def close(self) -> None:
        """Close the store and give its lock back; harmless if it is not open."""
        try:
            await self.store.close()
        finally:
            await self._lock.release()

    @asynccontextmanager
    async def _lifespan(self, _: FastAPI) -> AsyncIterator[None]:
        """Run the supervisor beside the API; at the end drain everything."""
        ERROR_LOG.install()
        running = [
            asyncio.create_task(self._run(), name="supervisor"),
            asyncio.create_task(self._gate.record_uses(), name="uses of tokens"),
        ]
        if (token := self._admin_token) is not None and token.file is not None:
            running.append(asyncio.create_task(on_change([token.file], token.reload), name="admin token"))
        for task in running:
            task.add_done_callback(self._ended)
        try:
            yield
        finally:
            await ended(*running)
            await self._supervisor.shutdown()
            await self._gate.write_uses()
            await self.close()

    def _ended(self, running: asyncio.Task[None]) -> None:
        if running.cancelled():
            return
        self.crashed = True
        error = running.exception()
        if isinstance(error, StoreError | AccessError):
            self.refused = error
        else:
            _log.critical("service_crashed", exc_info=error)
        self.on_crash()

    async def _run(self) -> None:
        if not self.store.is_open:
            await self._patiently("the store can't be opened", self.store.open)
            await self._patiently("the tokens can't be read", self._gate.check)
        while True:
            await self._only_process()
            await self._while_ours()

    async def _only_process(self) -> None:
        """Wait for the store's lock: two processes on one store would fight over every session."""
        others = False
        while True:
            try:
                if await self._lock.try_acquire():
                    break
                others = True
                self._waits(_in_use(await self._lock.holder()))
            except StoreUnavailableError as error:
                self._waits(str(error))
                if others:  # perhaps they were only cut off, as we were: they may have it back first
                    await self._patiently("the store's lock can't be looked at", self._lock.holder)
                    await asyncio.sleep(self._lock.takeover_seconds)
            await asyncio.sleep(_LOCK_POLL_SECONDS)
        if others:
            await asyncio.sleep(self._lock.takeover_seconds)

    async def _while_ours(self) -> None:
        """Run the mappings until the store's lock is another process's, and then stop them."""
        working = asyncio.create_task(self._work(), name="supervisor run")
        watching = asyncio.create_task(self._until_others(), name="lock")
        try:
            await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            await ended(working, watching)
        if watching.cancelled():
            await working  # raises what it ended with
        reason = watching.result()
        _log.error("store_lock_taken", reason=reason)
        await self._supervisor.stand_down(reason)

    async def _work(self) -> None:
        if self._applied:
            # Behind the last write of whoever had the lock meanwhile.
            await self._patiently("the store can't be written to", self.store.ping)
        else:
            await self._apply_file()
            self._applied = True
        await self._supervisor.run()

    async def _until_others(self) -> str:
        """Hold the lock, and take it again whenever its session breaks; says so once another process has it.

        While the server is away nobody has it, so the mappings go on.
        """
        while True:
            await sleep_to_tick(_LOCK_CHECK_SECONDS)
            try:
                await self._lock.check()
            except StoreUnavailableError as error:
                _log.warning("store_lock_lost", reason=str(error))
                if others := await self._taken_by_others():
                    return others
                _log.info("store_lock_regained")
                # Somebody may have had it while the server was out of our reach.
                self.store.forget_revision()
                self._supervisor.wake()

    async def _taken_by_others(self) -> str | None:
        while True:
            try:
                return None if await self._lock.try_acquire() else _in_use(await self._lock.holder())
            except StoreUnavailableError:  # said when it was lost, and by the ping of the store
                await asyncio.sleep(_LOCK_POLL_SECONDS)

    def _waits(self, reason: str) -> None:
        """Say why nothing runs; in the log only what is new."""
        self._supervisor.waiting(reason)
        if reason != self._told:
            _log.warning("waiting", reason=reason)
            self._told = reason

    async def _apply_file(self) -> None:
        """Bring the file's entries into the store, and say what that did."""
        self._supervisor.waiting("the configuration file is being applied")
        entries = [(entry.mapping, entry.digest) for entry in self._config.forwarding]
        prune = self._settings.prune
        # Said first: once it is deleted, its session ends at the broker, with everything queued there.
        removed = await self._patiently(_NOT_APPLIED, self.store.deleted_by_file, entries, prune=prune)
        for name, client_ids in removed.items():
            _log.warning("mapping_removed_from_file", mapping=name, client_ids=client_ids)
        report = await self._patiently(_NOT_APPLIED, self.store.apply_file, entries, prune=prune)
        for warning in (*self._config.warnings, *report.warnings):
            _log.warning("configuration", detail=warning)
        for name in report.skipped:
            for warning in report.warnings:
                if repr(name) in warning:
                    self._supervisor.notice(name, warning)
        _log.info(
            "configuration_applied",
            **{
                change: list(names)
                for change in ("created", "replaced", "deleted", "paused", "skipped")
                if (names := getattr(report, change))
            },
        )

    async def _patiently(
        self,
        what: str,
        call: Callable[_Arguments, Awaitable[_Result]],
        *arguments: _Arguments.args,
        **named: _Arguments.kwargs,
    ) -> _Result:
        """Call the store until it is there; `what` is said meanwhile."""
        while True:
            try:
                return await call(*arguments, **named)
            except StoreUnavailableError as error:
                self._waits(f"{what}: {error}")
                await asyncio.sleep(_STORE_RETRY_SECONDS)


def _in_use(holder: str) -> str:
    return f"the store is in use by another process ({holder})"


async def end_foreign_session(settings: Settings, config: Config, client_id: str) -> str:
    """End an MQTT session that is none of ours at the broker; returns the broker's address.

    Raises:
        OwnSessionError: it is a mapping's.
        ConnectionEndedError: the broker is away or refuses.
        StoreError: the store can't be used.
    """
    base = config.mqtt.client_id
    owners = {entry.mapping.client_id(base): entry.mapping.name for entry in config.forwarding}
    store = Store(settings.database_url, client_id_of=lambda spec: spec.client_id(base))
    if store.exists():
        await store.open()
        try:
            owners |= {each.spec.client_id(base): each.spec.name for each in await store.mappings()}
            owners |= {row.client_id: row.mapping for row in await store.sessions() if not row.removal_pending}
        finally:
            await store.close()
    if client_id in owners:
        raise OwnSessionError(owners[client_id])
    await end_unknown_session(Broker(config.mqtt, connectors()), client_id)
    return config.mqtt.address


class OwnSessionError(Exception):
    """The session is that of a mapping, which would lose what the broker has queued."""

    def __init__(self, mapping: str) -> None:
        super().__init__(f"it is the session of the mapping {mapping!r}; pause that and call its reset-session")
        self.mapping = mapping


@contextlib.asynccontextmanager
async def opened(service: Service) -> AsyncIterator[Service]:
    """Open the service's store before anything is served, and close it if nothing came of that."""
    try:
        await service.open()
        yield service
    finally:
        await service.close()


def _admin_token(settings: Settings) -> AdminToken | None:
    if settings.admin_token is not None:
        return AdminToken(token=settings.admin_token.get_secret_value())
    return None if settings.admin_token_file is None else AdminToken(file=settings.admin_token_file)


def _opening(settings: Settings) -> Opening:
    if settings.auth == "none":
        return Opening.ALWAYS
    return Opening.WITHOUT_TOKENS if is_loopback(settings.host) else Opening.NEVER
