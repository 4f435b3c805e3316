"""The report as tables on a terminal."""

from __future__ import annotations

from statistics import median
from typing import TYPE_CHECKING

from rich.table import Table

from loadtest.contest import middle, ratios
from loadtest.limits import cores, limits

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from rich.console import Console

    from loadtest.contest import Results
    from loadtest.measurement import Measurement

RATIOS: dict[str, Callable[[Measurement], float]] = {
    "rate": lambda each: each.rate,
    "CPU a message": lambda each: each.cpu_micros,
    "p50": lambda each: each.latencies.percentile(50),
    "p99": lambda each: each.latencies.percentile(99),
    "peak memory": lambda each: each.peak,
}


def _latency(percent: float) -> Callable[[Sequence[Measurement]], str]:
    return lambda found: f"{middle(found, lambda each: each.latencies.percentile(percent)):,.1f}"


def _sum(count: Callable[[Measurement], int], *, alarming: bool = True) -> Callable[[Sequence[Measurement]], str]:
    def shown(found: Sequence[Measurement]) -> str:
        total = sum(map(count, found))
        return f"[red]{total:,}[/red]" if total and alarming else f"{total:,}"

    return shown


# How each row is made from the measurements of a forwarder.
FIGURES: dict[str, Callable[[Sequence[Measurement]], str]] = {
    "messages": lambda found: f"{found[0].verdict.published:,}",
    "messages a second": lambda found: f"{middle(found, lambda each: each.rate):,.0f}",
    "CPU µs a message": lambda found: f"{middle(found, lambda each: each.cpu_micros):.1f}",
    "CPU % of a core": lambda found: f"{middle(found, lambda each: each.cores * 100):.1f}",
    "first in Kafka after ms": lambda found: f"{middle(found, lambda each: each.first_seconds * 1e3):,.0f}",
    "latency p50 ms": _latency(50),
    "p90": _latency(90),
    "p99": _latency(99),
    "p99.9": _latency(99.9),
    "longest": _latency(100),
    "peak memory MB (most)": lambda found: f"{max(each.peak for each in found) / 1e6:,.0f}",
    "lost (all rounds)": _sum(lambda each: each.verdict.lost),
    "out of order": _sum(lambda each: each.verdict.out_of_order),
    "topics out of order": _sum(lambda each: each.verdict.topics_out_of_order),
    "not ours": _sum(lambda each: each.verdict.foreign),
    "repeated": _sum(lambda each: each.verdict.repeated, alarming=False),
    "left unacknowledged": _sum(lambda each: each.unacknowledged or 0, alarming=False),
}


def line(number: int, found: Measurement) -> str:
    """One measurement in one line, for whoever watches the run."""
    verdict = found.verdict
    return (
        f"{number:>2} {found.forwarder:<16} {found.rate:>9,.0f} msg/s {found.cpu_micros:>6.1f} µs CPU "
        f"({found.cores:.1%}) p50 {found.latencies.percentile(50):,.1f} p99 {found.latencies.percentile(99):,.1f} ms "
        f"{found.peak / 1e6:,.0f} MB"
        + ("" if verdict.good else f"  lost {verdict.lost}, out of order {verdict.out_of_order}")
    )


def show(results: Results, title: str, console: Console) -> None:
    """Print the report: medians of all rounds, ratios, and what was at its limit."""
    console.print(title, highlight=False)
    console.print(_figures(results))
    ours, *others = results.items()
    for name, theirs in others:
        console.print(_ratios(ours[0], ours[1], name, theirs))
    console.print(_processes(results))
    for name, measurements in results.items():
        for number, found in enumerate(measurements, 1):
            for limit in limits(found):
                console.print(f"round {number}, {name}: {limit}", highlight=False)


def _figures(results: Results) -> Table:
    table = Table()
    table.add_column("medians")
    for name in results:
        table.add_column(name, justify="right")
    for what, shown in FIGURES.items():
        table.add_row(what, *map(shown, results.values()))
    return table


def _ratios(ours: str, mine: Sequence[Measurement], name: str, theirs: Sequence[Measurement]) -> Table:
    table = Table(title=f"{ours} / {name}, round by round", title_justify="left")
    table.add_column("")
    for column in ("median", "least", "most"):
        table.add_column(column, justify="right")
    for what, figure in RATIOS.items():
        found = ratios(mine, theirs, figure)
        if found is not None:
            table.add_row(what, f"{found.median:.2f}", f"{found.least:.2f}", f"{found.most:.2f}")
    return table


def _processes(results: Results) -> Table:
    table = Table(title="cores used while messages flowed, medians", title_justify="left")
    table.add_column("measuring")
    names = list(dict.fromkeys(name for found in results.values() for each in found for name in each.cpu))
    for name in names:
        table.add_column(name, justify="right")
    for forwarder, found in results.items():
        used = [cores(each) for each in found]
        table.add_row(forwarder, *(f"{median(each.get(name, 0.0) for each in used):.2f}" for name in names))
    return table
