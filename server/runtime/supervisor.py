"""The supervisor: makes what runs follow what the store wants, and knows how all of it is."""

from __future__ import annotations

import asyncio
import random
import time
from collections import defaultdict
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import structlog

from server.core.backoff import Backoff
from server.core.lifecycle import State
from server.mqtt.port import ConnectionEndedError
from server.runtime.ending import end_session
from server.runtime.forwarder import Forwarder
from server.runtime.health import Health, Stuck
from server.runtime.lag import LoopLag
from server.runtime.ledger import Ledger
from server.runtime.reconcile import (
    Action,
    EndSession,
    Forget,
    KeepSession,
    Rest,
    Running,
    Start,
    Stop,
    Wanted,
    reconcile,
)
from server.store.errors import StoreUnavailableError
from server.tasks import event_within
from server.ticks import sleep_to_tick

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from collections.abc import Mapping as Lookup

    from server.core.mapping import Mapping
    from server.kafka.producer import Cluster
    from server.runtime.session import Broker
    from server.runtime.status import MappingStatus
    from server.store.store import Store
    from server.store.stored import StoredMapping

_log = structlog.get_logger()

STUCK_SECONDS = 25.0
# What a mapping takes without messages: connections, buffers, metadata, tasks. 150,000 bytes with 1,000 mappings and
# all well, nearly twice that with 200 and Kafka away (tests/faults/memory.py).
MAPPING_BYTES = 300_000
SHUTDOWN_SECONDS = 18.0
_PING_SECONDS = 5.0
_RECONCILE_SECONDS = 30.0  # what changes wakes it; with 1,000 mappings a look takes 10 ms
_STORE_RETRY_SECONDS = 2.0


@dataclass(slots=True)
class _Life:
    """A mapping's forwarder, and the task of its present run."""

    forwarder: Forwarder
    client_id: str = ""
    buffer_bytes: int = 0
    task: asyncio.Task[None] | None = None
    stopping: bool = False

    @property
    def active(self) -> bool:
        return self.task is not None and not self.task.done()


class Supervisor:
    """All mappings of the process."""

    def __init__(self, store: Store, broker: Broker, cluster: Cluster, *, memory_budget: int) -> None:
        self._store = store
        self._broker = broker
        self._cluster = cluster
        self._memory_budget = memory_budget
        self._ledger = Ledger(store)
        self.lag = LoopLag()
        self._lives: dict[str, _Life] = {}
        self._wanted: dict[str, StoredMapping] = {}
        self._wanted_since: dict[str, float] = {}
        self._endings: dict[str, asyncio.Task[None]] = {}
        self._notices: dict[str, list[tuple[datetime, str]]] = {}
        self._revision: int | None = None  # of the store, when it was read
        self._wake = asyncio.Event()
        self._started = False
        self._running = False
        self._waiting_for: str | None = "the start of the process"
        self._store_error: str | None = None

    # --- what the API asks ------------------------------------------------------------------------------------------

    def wake(self) -> None:
        """Look at the store again soon."""
        self._wake.set()

    def client_id_of(self, spec: Mapping) -> str:
        """The effective MQTT client id; "" means the session is not durable."""
        return spec.client_id(self._broker.connection.client_id)

    def record_limit(self) -> int | None:
        """The largest record that is configured to be sent to Kafka, in bytes; None if only Kafka's own limit holds."""
        return self._cluster.options.record_limit

    def state(self, name: str) -> State:
        """The observed state of a mapping."""
        life = self._lives.get(name)
        return life.forwarder.state if life else State.PAUSED

    def status(self, stored: StoredMapping) -> MappingStatus:
        """The status of a mapping; also of one that is not started yet."""
        life = self._lives.get(stored.spec.name)
        forwarder = life.forwarder if life else self._forwarder(stored.spec.name)
        status = forwarder.status(stored, self._broker.connection.client_id)
        name, client_id = stored.spec.name, self.client_id_of(stored.spec)
        # One that was created after the notice is another mapping of the same name.
        own = (text for at, text in self._notices.get(name, []) if at >= stored.created_at)
        notices = [*own, *self._cluster.options.warnings]
        owner = self._ledger.owner(client_id)
        if owner != name and owner in self._wanted:
            notices.append(
                f"waits for the client id {client_id!r}: {owner!r} has to run once to drain what is queued there"
            )
        return status.model_copy(update={"warnings": [*status.warnings, *notices]}) if notices else status

    def session_reset(self, name: str) -> None:
        """The sessions of a paused mapping are to be ended: nothing of the past comes again."""
        life = self._lives.get(name)
        if life is not None and not life.active:
            life.forwarder.forget_session()
        self._wake.set()

    def health(self) -> Health:
        """The facts the probes judge."""
        now = time.monotonic()
        stuck, not_running = [], []
        for name, stored in self._wanted.items():
            if stored.spec.paused:
                continue
            life = self._lives.get(name)
            if life is None or not life.active:
                seconds, why = now - self._wanted_since.get(name, now), "not started"
                if life is not None:  # between two runs, or FAILED: only since it ran last
                    seconds = min(seconds, life.forwarder.stuck_for(now)[0])
                if life is not None and life.forwarder.reason:
                    why = f"{life.forwarder.state.value}: {life.forwarder.reason.detail}"
            else:
                seconds, why = life.forwarder.stuck_for(now)
            if life is None or life.forwarder.state is not State.RUNNING:
                not_running.append(name)
            if seconds > STUCK_SECONDS:
                stuck.append(Stuck(name, f"{why} (for {seconds:.0f} s)"))
        return Health(
            started=self._started,
            supervisor_running=self._running,
            waiting_for=self._waiting_for,
            store_error=self._store_error,
            stuck=tuple(stuck),
            not_running=tuple(not_running),
        )

    # --- what the metrics ask ---------------------------------------------------------------------------------------

    @property
    def rest_seconds(self) -> float:
        """How long readers rest after few messages, now (seconds)."""
        return self._cluster.rests.seconds

    def forwarders(self) -> list[Forwarder]:
        """Every mapping there is, by name."""
        return [self._lives[name].forwarder for name in sorted(self._lives)]

    # --- life -------------------------------------------------------------------------------------------------------

    def waiting(self, reason: str) -> None:
        """Say why nothing runs yet."""
        self._waiting_for = reason

    def notice(self, name: str, text: str) -> None:
        """Show a warning in the status of a mapping, for as long as it exists."""
        self._notices.setdefault(name, []).append((datetime.now(UTC), text))

    async def run(self) -> None:
        """Run until `shutdown`. A part of it that crashes is said and started again, never missed in silence."""
        self._running = True
        try:
            await self._load()
            self._started, self._waiting_for = True, None
            async with asyncio.TaskGroup() as parts:
                for part in (self._follow, self._watch_store, self._watch_lag):
                    parts.create_task(self._guarded(part.__name__, part), name=f"supervisor {part.__name__}")
        finally:
            self._running = False

    async def shutdown(self) -> None:
        """Drain everything, for SHUTDOWN_SECONDS at most. `run` must have been cancelled before."""
        for life in self._lives.values():
            if life.active:
                life.stopping = True
                life.forwarder.stop()
        for ending in self._endings.values():
            ending.cancel()
        tasks = [life.task for life in self._lives.values() if life.task is not None] + list(self._endings.values())
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=SHUTDOWN_SECONDS)
            for task in late:
                _log.error("drain_too_slow", task=task.get_name())
                task.cancel()
            if late:
                await asyncio.wait(late, timeout=1.0)
        await self._ledger.flush()

    async def stand_down(self, reason: str) -> None:
        """Drain everything and forget what was known: the store is another process's. `run` must have been cancelled.

        `run` may be called again, and begins with what the store says then.
        """
        self._started, self._waiting_for = False, reason
        await self.shutdown()
        self._lives, self._wanted, self._wanted_since = {}, {}, {}
        self._revision = self._store_error = None
        # What the other process has observed since is newer than what the store did not take from us.
        self._ledger = Ledger(self._store)

    async def _load(self) -> None:
        while True:
            try:
                await self._ledger.load()
            except StoreUnavailableError as error:
                self._note_store(str(error))
                await asyncio.sleep(_STORE_RETRY_SECONDS)
            else:
                return

    async def _guarded(self, name: str, part: Callable[[], Awaitable[None]]) -> None:
        backoff = Backoff(random.random)
        while True:
            try:
                await part()
            except Exception:  # noqa: BLE001 - the guard of an eternal task: said, and started again
                _log.exception("supervisor_part_crashed", part=name)
            await asyncio.sleep(backoff.next_delay())

    async def _watch_store(self) -> None:
        while True:
            try:
                await self._store.ping()
                await self._ledger.flush()
                self._note_store(None)
                if self._store.revision != self._revision:
                    # Sessions were written, or mappings by a call that gave up on the answer: nobody else says so.
                    self._wake.set()
            except StoreUnavailableError as error:
                self._note_store(str(error))
            await sleep_to_tick(_PING_SECONDS)

    async def _watch_lag(self) -> None:
        cluster = self._cluster
        await self.lag.watch(lambda late: cluster.rests.sampled(late, cluster.sinks))

    def _note_store(self, error: str | None) -> None:
        if error is not None and self._store_error is None:
            _log.error("store_unavailable", error=error)
        elif error is None and self._store_error is not None:
            _log.info("store_available")
        self._store_error = error

    # --- following the store ----------------------------------------------------------------------------------------

    async def _follow(self) -> None:
        while True:
            self._wake.clear()
            try:
                await self._read_store()
                timeout = _RECONCILE_SECONDS
            except StoreUnavailableError as error:
                self._note_store(str(error))  # what is known goes on
                timeout = _STORE_RETRY_SECONDS
            for action in self._decide():
                await self._act(action)
            self._share_memory()
            await event_within(self._wake, timeout)

    async def _read_store(self) -> None:
        """Learn what is wanted, unless nothing was written since: this process is the only one that writes."""
        revision = self._store.revision
        if revision != self._revision:
            self._note_wanted({stored.spec.name: stored for stored in await self._store.mappings()})
            await self._ledger.refresh()
            self._revision = revision

    def _note_wanted(self, wanted: Lookup[str, StoredMapping]) -> None:
        now = time.monotonic()
        self._wanted = dict(wanted)
        for name in wanted.keys() - self._lives.keys():
            self._lives[name] = _Life(self._forwarder(name))
        since = self._wanted_since
        self._wanted_since = {name: since.get(name, now) for name, stored in wanted.items() if not stored.spec.paused}

    def _decide(self) -> list[Action]:
        wanted = {
            name: Wanted(stored.generation, stored.spec.paused, self.client_id_of(stored.spec))
            for name, stored in self._wanted.items()
        }
        owners = self._ledger.owners()
        sessions: defaultdict[str, set[str]] = defaultdict(set)
        for client_id, name in owners.items():
            sessions[name].add(client_id)
        running = {
            name: Running(
                life.forwarder.generation,
                life.forwarder.state,
                life.active,
                life.stopping,
                frozenset({life.client_id, *sessions[name]}),
            )
            for name, life in self._lives.items()
        }
        removals = {row.client_id for row in self._ledger.removals()}
        return reconcile(wanted, running, removals=removals, ending=self._endings.keys(), owners=owners)

    async def _act(self, action: Action) -> None:
        match action:
            case Stop(name):
                life = self._lives[name]
                life.stopping = True
                life.forwarder.stop()
            case Rest(name):
                self._lives[name].forwarder.rest()
            case Forget(name):
                del self._lives[name]
            case KeepSession(client_id):
                self._endings[client_id].cancel()
            case EndSession(client_id):
                self._end(client_id)
            case Start(name):
                await self._start(self._wanted[name])

    async def _start(self, stored: StoredMapping) -> None:
        name = stored.spec.name
        life = self._lives[name]
        life.client_id, life.stopping = self.client_id_of(stored.spec), False
        life.buffer_bytes = stored.spec.buffer_bytes
        await self._ledger.claim(life.client_id, name)
        life.task = asyncio.create_task(life.forwarder.run(stored.spec, stored.generation), name=f"mapping {name}")
        life.task.add_done_callback(lambda task: self._stopped(life, task))

    def _forwarder(self, name: str) -> Forwarder:
        return Forwarder(name, self._broker, self._cluster, self._ledger)

    def _stopped(self, life: _Life, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("mapping_crashed", mapping=life.forwarder.name, exc_info=error)
            life.forwarder.broke(error)
        self._wake.set()

    def _share_memory(self) -> None:
        """Each mapping that runs has its own budget, but at most an equal share of the process's.

        Of that share its session and its producer take a part, before any message.
        """
        active = [life for life in self._lives.values() if life.active]
        for life in active:
            share = self._memory_budget // len(active)
            life.forwarder.intake.budget = min(life.buffer_bytes, max(share - MAPPING_BYTES, share // 4))

    # --- sessions to be ended ---------------------------------------------------------------------------------------

    def _end(self, client_id: str) -> None:
        task = asyncio.create_task(self._end_session(client_id), name=f"ending session {client_id}")
        self._endings[client_id] = task
        task.add_done_callback(lambda done: self._ending_over(client_id, done))

    def _ending_over(self, client_id: str, task: asyncio.Task[None]) -> None:
        del self._endings[client_id]
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("ending_session_crashed", client_id=client_id, exc_info=error)
        self._wake.set()

    async def _end_session(self, client_id: str) -> None:
        """End a session, however long the broker is away."""
        backoff, told = Backoff(random.random), ""
        while (row := self._ledger.session(client_id)) is not None and row.removal_pending:
            protocol = row.protocol or ("3.1.1" if self._broker.connection.protocol == "3.1.1" else "5")
            try:
                await end_session(self._broker, row.client_id, protocol)
            except ConnectionEndedError as error:
                if error.ended.reason.detail != told:
                    told = error.ended.reason.detail
                    _log.warning("session_not_ended_yet", client_id=client_id, detail=told)
                await asyncio.sleep(backoff.next_delay())
            except Exception:  # noqa: BLE001 - a bug must not make a loop without a pause of it
                _log.exception("ending_session_crashed", client_id=client_id)
                await asyncio.sleep(backoff.next_delay())
            else:
                await self._ledger.forget(client_id)
                _log.info("session_ended", client_id=client_id, mapping=row.mapping)
