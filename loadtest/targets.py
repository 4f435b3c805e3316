"""The targets as rows: what is wanted, and a function each that finds what is."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

from loadtest.contest import ratios, spread

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from loadtest.contest import Results
    from loadtest.experiments import Experiments
    from loadtest.measurement import Measurement

    Meets = Callable[[float], bool]
    Figure = Callable[[Measurement], float]
    Find = Callable[[Experiments], "Finding"]

US, PLAIN, PROTOTYPE, TEMPLATED = "mkf", "plain", "prototype", "mkf, templates"
# The reader with which the targets of latency were set added about this. Ours adds next to nothing.
READER_MS = 10.0


@dataclass(frozen=True, slots=True)
class Finding:
    """What was measured, the ratio if the target is one, and whether it is met (None: no target, or not measured)."""

    measured: str
    ratio: str
    met: bool | None


@dataclass(frozen=True, slots=True)
class Target:
    """A row. `long`: only the long run measures it."""

    what: str
    wanted: str
    find: Find
    long: bool = False


NOT_MEASURED = Finding("not measured", "", None)


def at_least(bound: float) -> Meets:
    """Met from `bound` up."""
    return lambda value: value >= bound


def at_most(bound: float) -> Meets:
    """Met up to `bound`."""
    return lambda value: value <= bound


def of_all(meets: Meets, shown: str, figure: Figure, contest: Callable[[Experiments], Results]) -> Find:
    """Judge the median of our rounds; `shown` formats a figure and has its unit after a space."""

    def find(made: Experiments) -> Finding:
        found = spread([figure(each) for each in contest(made)[US]])
        number, _, unit = shown.partition(" ")
        least, most = number.format(found.least), number.format(found.most)
        return Finding(f"{number.format(found.median)} ({least}-{most}) {unit}", "", meets(found.median))

    return find


def of_worst(meets: Meets, shown: str, figure: Figure, contest: Callable[[Experiments], Results]) -> Find:
    """Judge the highest of our rounds."""

    def find(made: Experiments) -> Finding:
        worst = max(figure(each) for each in contest(made)[US])
        return Finding(shown.format(worst), "", meets(worst))

    return find


def against(
    other: str,
    meets: Meets | None,
    shown: str,
    figure: Figure,
    contest: Callable[[Experiments], Results],
    *,
    us: str = US,
) -> Find:
    """Judge the median of the ratios of our rounds to another forwarder's; without `meets`, only tell."""

    def find(made: Experiments) -> Finding:
        results = contest(made)
        if other not in results:
            return NOT_MEASURED
        ratio = ratios(results[us], results[other], figure)
        number, _, unit = shown.partition(" ")
        both = " to ".join(number.format(median(map(figure, results[name]))) for name in (us, other))
        met = meets(ratio.median) if ratio is not None and meets is not None else None
        return Finding(f"{both} {unit}", str(ratio or ""), met)

    return find


def rate(found: Measurement) -> float:
    """Messages a second."""
    return found.rate


def cpu_micros(found: Measurement) -> float:
    """CPU for a message in microseconds."""
    return found.cpu_micros


def cpu_percent(found: Measurement) -> float:
    """CPU in percent of a core."""
    return found.cores * 100


def peak_mb(found: Measurement) -> float:
    """The most memory in megabytes."""
    return found.peak / 1e6


def p50(found: Measurement) -> float:
    """The median latency in milliseconds."""
    return found.latencies.percentile(50)


def p50_with_reader(found: Measurement) -> float:
    """The median latency in milliseconds as the reader of the targets would have seen it."""
    return p50(found) + READER_MS


def _broker_alone(made: Experiments) -> Finding:
    """How many times the plain loop's rate any forwarder could reach."""
    plain = median(map(rate, made.drain[PLAIN]))
    found = spread([each / plain for each in made.broker_alone])
    return Finding(f"{median(made.broker_alone):,.0f} to {plain:,.0f} msg/s", str(found), None)


def _loop_lag(made: Experiments) -> Finding:
    lag = made.responsiveness.lag_p99
    return NOT_MEASURED if lag is None else Finding(f"<= {lag * 1e3:g} ms", "", lag < 0.02)


def _readiness(made: Experiments) -> Finding:
    seconds: Sequence[float] = sorted(made.responsiveness.readiness)
    p99 = seconds[int(len(seconds) * 0.99)]
    return Finding(f"p99 {p99 * 1e3:.0f} ms, longest {seconds[-1] * 1e3:.0f} ms", "", p99 < 0.05)


def _start(made: Experiments) -> Finding:
    start = made.start
    return Finding(f"{start.first:.1f} s, of each mapping {start.last:.1f} s", "", start.first < 3)


def _many_memory(made: Experiments) -> Finding:
    peak = made.many_mappings.peak / 1e6
    return Finding(f"{peak:.0f} MB", "", peak < 300)


def _many_cpu(made: Experiments) -> Finding:
    found = made.many_mappings
    p50, p99 = (found.latencies.percentile(percent) for percent in (50, 99))
    return Finding(f"{found.cores:.2f} cores, p50 {p50:.0f}, p99 {p99:.0f} ms", "", found.cores < 0.8)


def _many_idle(made: Experiments) -> Finding:
    found = made.many_mappings
    percent = found.idle_cores * 100
    return Finding(f"{percent:.1f} %; to wake costs {found.waking * 1e6:,.0f} µs here", "", percent < 2)


def _one_more(made: Experiments) -> Finding:
    seconds = made.many_mappings.add_seconds
    return Finding(f"{seconds:.2f} s", "", seconds < 1)


def _growing_rate(made: Experiments) -> Finding:
    """All but the smallest session, and without the start: a small one takes little else."""
    rates = [each.arrived / (each.seconds - each.first_seconds) for each in list(made.growth.values())[1:]]
    flat = min(rates) / rates[0]
    return Finding(", ".join(f"{each:,.0f}" for each in rates) + " msg/s", f"{flat:.2f}", flat >= 0.8)


def _growing_memory(made: Experiments) -> Finding:
    peaks = [each.peak / 1e6 for each in made.growth.values()]
    growth = peaks[-1] / peaks[1]
    return Finding(", ".join(f"{each:.0f}" for each in peaks) + " MB", f"{growth:.2f}", growth <= 1.2)


_RATE, _MICROS, _PERCENT, _MB, _MS = "{:,.0f} msg/s", "{:.2f} µs", "{:.1f} %", "{:.0f} MB", "{:.1f} ms"


def _paced(name: str, cpu_bound: float, contest: Callable[[Experiments], Results]) -> tuple[Target, ...]:
    wanted_cpu, wanted_p50 = f"CPU <= {cpu_bound:g} x prototype", "p50 <= 1.4 x prototype, as its reader saw it"
    exact = "(p50 without that reader's 10 ms)"
    return (
        Target(name, wanted_cpu, against(PROTOTYPE, at_most(cpu_bound), _PERCENT, cpu_percent, contest)),
        Target(name, wanted_p50, against(PROTOTYPE, at_most(1.4), _MS, p50_with_reader, contest)),
        Target(name, exact, against(PROTOTYPE, None, _MS, p50, contest)),
    )


TARGETS: tuple[Target, ...] = (
    Target("drain, QoS 1", ">= 40 x plain loop", against(PLAIN, at_least(40), _RATE, rate, lambda made: made.drain)),
    Target("drain, QoS 1", "(Mosquitto alone, all acknowledged)", _broker_alone),
    Target(
        "drain, QoS 1", ">= 0.9 x prototype", against(PROTOTYPE, at_least(0.9), _RATE, rate, lambda made: made.drain)
    ),
    Target("drain, QoS 1", "CPU <= 4 µs/msg", of_all(at_most(4), _MICROS, cpu_micros, lambda made: made.drain)),
    Target("live, full speed", "CPU <= 8 µs/msg", of_all(at_most(8), _MICROS, cpu_micros, lambda made: made.live)),
    *_paced("paced, 1,000 msg/s", 0.35, lambda made: made.paced_slowly),
    *_paced("paced, 5,000 msg/s", 0.25, lambda made: made.paced_fast),
    Target("50 in flight", ">= 15,000 msg/s", of_all(at_least(15_000), _RATE, rate, lambda made: made.small_window)),
    Target(
        "50 in flight",
        ">= 0.9 x prototype",
        against(PROTOTYPE, at_least(0.9), _RATE, rate, lambda made: made.small_window),
    ),
    Target("1,000 B", ">= 100,000 msg/s", of_all(at_least(100_000), _RATE, rate, lambda made: made.kilobyte)),
    Target("1,000 B", "< 150 MB", of_worst(at_most(150), _MB, peak_mb, lambda made: made.kilobyte)),
    Target("10 kB", ">= 20,000 msg/s", of_all(at_least(20_000), _RATE, rate, lambda made: made.ten_kilobytes)),
    Target("10 kB", "< 150 MB", of_worst(at_most(150), _MB, peak_mb, lambda made: made.ten_kilobytes)),
    Target(
        "3 headers, key, wrap_as_json",
        "CPU <= 2.5 x bare mapping",
        against(US, at_most(2.5), _MICROS, cpu_micros, lambda made: made.drain, us=TEMPLATED),
    ),
    Target("QoS 0, live", ">= 90,000 msg/s", of_all(at_least(90_000), _RATE, rate, lambda made: made.qos0)),
    Target(
        "QoS 2, drain, 50 in flight", ">= 5,000 msg/s", of_all(at_least(5_000), _RATE, rate, lambda made: made.qos2)
    ),
    Target("event loop lag, full load", "p99 < 20 ms", _loop_lag),
    Target("/readyz, full load", "< 50 ms", _readiness),
    Target("start, 100 mappings", "first message < 3 s", _start),
    Target("1,000 mappings x 5 msg/s", "< 300 MB", _many_memory),
    Target("1,000 mappings x 5 msg/s", "< 0.8 core", _many_cpu),
    Target("1,000 mappings, idle", "< 2 % of a core", _many_idle),
    Target("1,000 mappings, one more", "running in < 1 s", _one_more),
    Target("backlog 10^5 to 10^7", "rate stays (>= 0.8)", _growing_rate, long=True),
    Target("backlog 10^4 to 10^7", "memory stays (<= 1.2)", _growing_memory, long=True),
)
