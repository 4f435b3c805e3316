"""The ways to measure: draining a session that was filled before, and forwarding while others publish.

For a drain the forwarder starts while the broker is frozen, so it has loaded everything and waits for the first byte
when the broker goes on, which starts the clock: neither its start nor what it buffers meanwhile is part of the figures.
A broker that is not the tool's own can't be frozen; then the clock starts with the forwarder's process.
"""

from __future__ import annotations

import time
import uuid
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

from loadtest import mqtt
from loadtest.crew import publishers, reading, run_all
from loadtest.measurement import Measurement, MeasurementError
from loadtest.processes import Watch
from loadtest.reader import Reading
from loadtest.reader import Task as ReaderTask
from loadtest.site import PARTITIONS
from loadtest.trial import trial

if TYPE_CHECKING:
    from collections.abc import Callable

    from loadtest.forwarders import Forwarder
    from loadtest.site import Site
    from loadtest.trial import Trial
    from loadtest.workload import Workload

PUBLISH_TIMEOUT = 3600.0
SILENCE = 15.0
IDLE_TIMEOUT = 60.0
_POLL_SECONDS = 0.05


class Progress(Protocol):
    """Is told what goes on: a stage, and how many of its messages are done."""

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Tell it."""


def silent(stage: str, done: int, total: int) -> None:
    """Progress that nobody watches."""


def drain(
    forwarder: Forwarder,
    site: Site,
    workload: Workload,
    *,
    wrapped: bool = False,
    silence: float = SILENCE,
    progress: Progress = silent,
) -> Measurement:
    """Fill a session, then let the forwarder empty it. What has not come `silence` seconds after the last is lost.

    Raises:
        MeasurementError: it can't be measured. Lost messages are no error here: see the verdict.
    """
    with trial(forwarder, site, workload, wrapped=wrapped) as run:
        run.establish()
        already = run.topic.records()
        with publishers(site.mqtt, run.task.prefix, replace(workload, rate=None)) as workers:
            sent = [each.messages for each in run_all(workers, PUBLISH_TIMEOUT, lambda: progress("fill", 0, 0))]
        watch, began = _released(run)
        _wait_until_arrived(run, lambda: run.topic.records() - already, sum(sent), silence, progress)
        run.wait_until_idle(IDLE_TIMEOUT)
        watch.end()
        run.stop()
        left = run.unacknowledged() if workload.qos else None
        found = read_afterwards(run, workload, sent, since_ns=began)
        return _measurement(forwarder, "drain", watch, found, began, unacknowledged=left)


def broker_alone(site: Site, workload: Workload) -> float:
    """Messages a second with which the MQTT broker gives a session to who only acknowledges: no drain is faster.

    From CONNECT to the last message, as a drain ends with its last record, whatever the broker has still to do then.

    Raises:
        MqttError: it does not give all of it.
    """
    name = f"load-{uuid.uuid4().hex[:12]}"
    mqtt.create_session(site.mqtt, name, f"{name}/#", 1)
    with publishers(site.mqtt, name, replace(workload, rate=None)) as workers:
        run_all(workers, PUBLISH_TIMEOUT, lambda: None)
    began = time.monotonic()
    with mqtt.last_connection(site.mqtt, name) as connection:
        connection.take(workload.messages)
        return workload.messages / (time.monotonic() - began)


def live(
    forwarder: Forwarder,
    site: Site,
    workload: Workload,
    *,
    wrapped: bool = False,
    silence: float = SILENCE,
    progress: Progress = silent,
) -> Measurement:
    """Let the forwarder forward while publishers publish, at full speed or, if the workload has a rate, at a pace.

    At a pace a reader reads meanwhile. At full speed it would take from the forwarder the CPU that is measured, so it
    reads afterwards. What has not come `silence` seconds after the last is lost.

    Raises:
        MeasurementError: it can't be measured. Lost messages are no error here: see the verdict.
    """
    paced = workload.rate is not None
    with trial(forwarder, site, workload, wrapped=wrapped) as run, ExitStack() as stack:
        if not run.command.subscribes:
            run.establish()
        run.start()
        # They take as long to be ready as the forwarder does.
        workers = stack.enter_context(publishers(site.mqtt, run.task.prefix, workload))
        reader = stack.enter_context(reading(_reader_task(run, workload, live=True))) if paced else None
        run.wait_until_forwarding()
        run.wait_until_idle()
        pids = run.pids() | {worker.name: worker.pid for worker in workers}
        if reader is not None:
            pids["reader"] = reader.pid
        already = run.topic.records()

        def arrived() -> int:
            return reader.arrived if reader is not None else run.topic.records() - already

        watch, began = Watch(pids, run.child.pid).begin(), time.time_ns()
        published = run_all(workers, PUBLISH_TIMEOUT, lambda: progress("live", arrived(), workload.messages))
        sent = [each.messages for each in published]
        _wait_until_arrived(run, arrived, sum(sent), silence, progress)
        watch.end()
        # Should there be repeats, not all of them need to be there when so many records are.
        run.wait_until_idle(IDLE_TIMEOUT)
        run.stop()
        found = reader.stop(sent) if reader is not None else read_afterwards(run, workload, sent)
        return _measurement(forwarder, "paced" if paced else "live", watch, found, began)


def _released(run: Trial) -> tuple[Watch, int]:
    """Start the forwarder, and let it have the session's messages; returns when that was (ns since 1970)."""
    mosquitto = run.site.mosquitto
    if mosquitto is None:
        run.start()
        return Watch(run.pids(), run.child.pid).begin(), time.time_ns()
    mosquitto.pause()
    try:
        run.start()
        run.wait_until_idle()
        return Watch(run.pids(), run.child.pid).begin(), time.time_ns()
    finally:
        mosquitto.resume()


def _wait_until_arrived(
    run: Trial, arrived: Callable[[], int], messages: int, silence: float, progress: Progress
) -> None:
    """Wait until so many messages are in Kafka, or nothing new has come for `silence` seconds."""
    held, changed = -1, time.monotonic()
    while held < messages and time.monotonic() - changed < silence:
        time.sleep(_POLL_SECONDS)
        before, held = held, arrived()
        progress("arrive", held, messages)
        if held > before:
            changed = time.monotonic()
        if not run.child.running:
            raise MeasurementError(str(run.child.error(f"ended after {held} of {messages} messages")))


def _reader_task(run: Trial, workload: Workload, *, live: bool, since_ns: int = 0) -> ReaderTask:
    return ReaderTask(run.site.kafka, run.topic.name, PARTITIONS, workload.topics, live, since_ns)


def read_afterwards(run: Trial, workload: Workload, sent: list[int], *, since_ns: int = 0) -> Reading:
    """Read what is in Kafka, when nothing is measured any more; latencies are until Kafka appended each."""
    with reading(_reader_task(run, workload, live=False, since_ns=since_ns)) as reader:
        return reader.stop(sent)


def _measurement(
    forwarder: Forwarder, mode: str, watch: Watch, found: Reading, began: int, *, unacknowledged: int | None = None
) -> Measurement:
    if not found.last_append_ns:
        raise MeasurementError(f"{forwarder.name}: not one message reached Kafka")
    seconds = (found.last_append_ns - began) / 1e9
    if seconds <= 0:
        raise MeasurementError("Kafka's clock is not this machine's: it wrote the last record before the start")
    return Measurement(
        forwarder=forwarder.name,
        mode=mode,
        seconds=seconds,
        first_seconds=(found.first_append_ns - began) / 1e9,
        verdict=found.verdict,
        latencies=found.latencies,
        watched_seconds=watch.seconds,
        cpu=watch.cpu,
        peak=watch.peak,
        samples=watch.samples,
        intervals=found.intervals,
        began_ns=began,
        unacknowledged=unacknowledged,
    )
