"""The measurements behind the targets. Each is made once, when the first target asks for it."""

from __future__ import annotations

import math
import time
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING

from loadtest import modes
from loadtest.contest import compete
from loadtest.crew import publishers, run_all
from loadtest.forwarders import Plain, Prototype, Service
from loadtest.measurement import FORWARDER, MeasurementError
from loadtest.processes import Watch
from loadtest.service import ReadinessProbe, ServiceApi, quantile
from loadtest.trial import trial
from loadtest.workload import Workload

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from loadtest.contest import Results
    from loadtest.forwarders import Forwarder
    from loadtest.latency import Latencies
    from loadtest.measurement import Measurement
    from loadtest.site import Site
    from loadtest.trial import Trial

SERVICE = Service()
TEMPLATED = Service(
    "mkf, templates",
    mapping={
        "kafka": {
            "key": "{topic[1]}",
            "headers": {"source": "{topic}", "device": "{topic[1]}", "mapping": "{mapping}"},
        },
        "wrap_as_json": True,
    },
)
PLAIN = Plain()
SMALL_WINDOW = 50
PUBLISH_TIMEOUT = 600.0
FIRST_TIMEOUT = 60.0
START_TIMEOUT = 120.0


@dataclass(frozen=True, slots=True)
class Scale:
    """How much there is to measure. Messages, seconds, and how often."""

    rounds: int
    drain: int
    live: int
    paced_seconds: float
    growth: tuple[int, ...] = ()
    mappings: int = 1_000
    mappings_seconds: float = 30  # a multiple of the keep alive: PINGREQs of all are in it, and as many of each


SHORT = Scale(rounds=3, drain=400_000, live=150_000, paced_seconds=5, mappings_seconds=15)
FULL = Scale(rounds=5, drain=1_000_000, live=500_000, paced_seconds=20, growth=(10_000, 100_000, 1_000_000, 10_000_000))


@dataclass(frozen=True, slots=True)
class Responsiveness:
    """Seconds under full load: /readyz's answers, and the event loop's lag (None: it isn't measured)."""

    readiness: Sequence[float]
    lag_p99: float | None


@dataclass(frozen=True, slots=True)
class ManyMappings:
    """A service with many mappings: CPU in cores, idle and at work; bytes; the seconds until one more runs.

    `waking` is the CPU a thread took meanwhile each time it woke, once a second, for nothing (seconds): on a machine
    where that costs much, so does a service that wakes.
    `latencies` are from the publisher until Kafka had a message. At a limit of the service, or of the machine, it is
    these that grow, while the CPU stays below a core.
    """

    idle_cores: float
    waking: float
    cores: float
    latencies: Latencies
    peak: int
    add_seconds: float


@dataclass(frozen=True, slots=True)
class Start:
    """Seconds from the start of the process to the first message in Kafka, and to the last of one per mapping."""

    first: float
    last: float


class Experiments:
    """All of them, between the same brokers. `contests` are those made so far, by title, for the report."""

    def __init__(
        self, site: Site, scale: Scale, prototype: Path | None, tell: Callable[[str, int, Measurement], None]
    ) -> None:
        self._site = site
        self._tell = tell
        self._prototype: list[Forwarder] = [] if prototype is None else [Prototype(prototype)]
        self.scale = scale
        self.contests: dict[str, Results] = {}
        self._failed: dict[str, MeasurementError] = {}

    @cached_property
    def drain(self) -> Results:
        """Our service, bare and with everything a mapping can do to a record, the prototype, and the plain loop."""
        workload, few = Workload(self.scale.drain), Workload(self.scale.drain // 12)

        def measure(forwarder: Forwarder) -> Measurement:
            # Rates compare, and the plain loop would need minutes. It has up to 10,000 in flight, and the clock
            # does not wait for their acknowledgement: few must be many more.
            return modes.drain(forwarder, self._site, few if forwarder is PLAIN else workload)

        return self._contest("drain, QoS 1", [SERVICE, TEMPLATED, *self._prototype, PLAIN], measure, warm_up=True)

    @cached_property
    def broker_alone(self) -> Sequence[float]:
        """Messages a second of the same drain without a forwarder, by round: what the MQTT broker gives at most."""
        return [modes.broker_alone(self._site, Workload(self.scale.drain)) for _ in range(self.scale.rounds)]

    @cached_property
    def live(self) -> Results:
        """Publishing at full speed."""
        return self._live("live, QoS 1", [SERVICE], Workload(self.scale.live))

    @cached_property
    def paced_slowly(self) -> Results:
        """1,000 messages a second."""
        return self._paced(1_000)

    @cached_property
    def paced_fast(self) -> Results:
        """5,000 messages a second."""
        return self._paced(5_000)

    @cached_property
    def small_window(self) -> Results:
        """A broker that keeps few messages in flight."""
        with self._site.with_window(SMALL_WINDOW) as site:
            measure = partial(modes.drain, site=site, workload=Workload(self.scale.drain // 10))
            return self._contest("drain, 50 in flight", [SERVICE, *self._prototype], measure)

    @cached_property
    def kilobyte(self) -> Results:
        """Payloads of 1,000 bytes."""
        return self._drained("drain, 1,000 B", Workload(self.scale.drain // 4, "1000"))

    @cached_property
    def ten_kilobytes(self) -> Results:
        """Payloads of 10,000 bytes."""
        return self._drained("drain, 10 kB", Workload(self.scale.drain // 20, "10000"))

    @cached_property
    def qos0(self) -> Results:
        """QoS 0 at full speed."""
        return self._live("live, QoS 0", [SERVICE], Workload(self.scale.live, qos=0))

    @cached_property
    def qos2(self) -> Results:
        """A session of QoS 2 messages, at a broker that keeps few of them in flight."""
        with self._site.with_window(SMALL_WINDOW) as site:
            measure = partial(modes.drain, site=site, workload=Workload(self.scale.drain // 20, qos=2))
            return self._contest("drain, QoS 2, 50 in flight", [SERVICE], measure)

    @cached_property
    def growth(self) -> dict[int, Measurement]:
        """Drains of ever larger sessions, by their number of messages."""
        return {
            messages: self._drained(f"drain of {messages:,}", Workload(messages), rounds=1)[SERVICE.name][0]
            for messages in self.scale.growth
        }

    @cached_property
    def responsiveness(self) -> Responsiveness:
        """How the service answers while it forwards at full speed."""
        workload = Workload(self.scale.live)
        with self._running(SERVICE, workload) as (run, api):
            already = run.topic.records()
            with publishers(self._site.mqtt, run.task.prefix, workload) as workers:
                before = api.loop_lag()
                with ReadinessProbe(_port(run)) as probe:
                    run_all(workers, PUBLISH_TIMEOUT, lambda: None)
                    _wait(lambda: run.topic.records() >= already + workload.messages)
                return Responsiveness(probe.seconds, quantile(before, api.loop_lag(), 0.99))

    @cached_property
    def many_mappings(self) -> ManyMappings:
        """1,000 mappings with 5 messages a second each."""
        mappings = self.scale.mappings
        workload = Workload(round(5 * mappings * self.scale.mappings_seconds), topics=mappings, rate=5.0 * mappings)
        with self._running(Service(mappings=mappings), workload) as (run, api):
            run.wait_until_idle(START_TIMEOUT)
            idle = Watch(run.pids(), run.child.pid).begin()
            waking = _cost_of_waking(round(self.scale.mappings_seconds))
            idle.end()
            with publishers(self._site.mqtt, run.task.prefix, workload) as workers:
                busy = Watch(run.pids(), run.child.pid).begin()
                sent = [each.messages for each in run_all(workers, PUBLISH_TIMEOUT, lambda: None)]
                _wait(lambda: run.topic.records() >= workload.messages)
                busy.end()
            found = modes.read_afterwards(run, workload, sent)
            if not found.verdict.good:
                raise MeasurementError(f"{mappings:,} mappings: {found.verdict}")
            topic = {"topic": f"{run.task.prefix}/one/more"}
            added = api.add({"name": "one more", "mqtt": topic, "kafka": {"topic": run.task.topic}})
            idle_cores, cores = (watch.cpu[FORWARDER] / watch.seconds for watch in (idle, busy))
            return ManyMappings(idle_cores, waking, cores, found.latencies, busy.peak, added)

    @cached_property
    def start(self) -> Start:
        """100 mappings, each with a message that waits in its session."""
        workload = Workload(100, topics=100)
        with trial(Service(mappings=100), self._site, workload) as run:
            run.start()
            with ServiceApi(_port(run)) as api:
                api.wait_until_running(100)
            run.stop()
            with publishers(self._site.mqtt, run.task.prefix, workload) as workers:
                run_all(workers, PUBLISH_TIMEOUT, lambda: None)
            began = time.monotonic()
            run.start()
            _wait(lambda: run.topic.records() > 0)
            first = time.monotonic() - began
            _wait(lambda: run.topic.records() >= workload.messages)
            return Start(first, time.monotonic() - began)

    @contextmanager
    def _running(self, service: Service, workload: Workload) -> Iterator[tuple[Trial, ServiceApi]]:
        with trial(service, self._site, workload) as run:
            run.start()
            with ServiceApi(_port(run)) as api:
                api.wait_until_running(service.mappings)
                yield run, api

    def _paced(self, rate: int) -> Results:
        workload = Workload(round(rate * self.scale.paced_seconds), rate=rate)
        return self._live(f"paced, {rate:,} a second", [SERVICE, *self._prototype], workload)

    def _live(self, title: str, forwarders: Sequence[Forwarder], workload: Workload) -> Results:
        return self._contest(title, forwarders, partial(modes.live, site=self._site, workload=workload))

    def _drained(self, title: str, workload: Workload, rounds: int | None = None) -> Results:
        measure = partial(modes.drain, site=self._site, workload=workload)
        return self._contest(title, [SERVICE], measure, rounds)

    def _contest(
        self,
        title: str,
        forwarders: Sequence[Forwarder],
        measure: Callable[[Forwarder], Measurement],
        rounds: int | None = None,
        *,
        warm_up: bool = False,
    ) -> Results:
        """Let them compete, with `warm_up` after a run that does not count.

        A fresh JVM has to compile what it runs often: Kafka's first million messages cost it twice as much CPU.
        """
        if title in self._failed:
            raise self._failed[title]
        try:
            if warm_up:
                measure(forwarders[0])
            found = compete(forwarders, rounds or self.scale.rounds, measure, partial(self._tell, title))
        except MeasurementError as error:
            self._failed[title] = error  # the next row that needs it need not try again
            raise
        self.contests[title] = found
        return found


def _port(run: Trial) -> int:
    assert run.command.http_port is not None  # noqa: S101 - our service has one
    return run.command.http_port


def _cost_of_waking(seconds: int) -> float:
    """CPU seconds for each time a thread wakes, in the middle of each of so many seconds of the clock."""
    used, began = time.thread_time(), math.floor(time.monotonic())
    for second in range(1, seconds + 1):
        time.sleep(max(0.0, began + second + 0.5 - time.monotonic()))
    return (time.thread_time() - used) / seconds


def _wait(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + FIRST_TIMEOUT
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {FIRST_TIMEOUT:g} s")
        time.sleep(0.01)
