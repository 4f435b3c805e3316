"""The report as one HTML file with plots, which needs no network."""

from __future__ import annotations

import html
from typing import TYPE_CHECKING, Any

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs
from plotly.subplots import make_subplots

from loadtest.reader import BIN_NS
from loadtest.terminal import FIGURES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from loadtest.contest import Results
    from loadtest.measurement import Measurement

COLOURS = ("#2166ac", "#b2182b", "#4d9221", "#e08214", "#762a83", "#35978f")
# Where a curve of latency by percentile is looked at.
CURVE = (0, 10, 25, 50, 75, 90, 95, 99, 99.5, 99.9, 99.95, 99.99, 100)
STYLE = """
body {font: 15px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; color: #222}
table {border-collapse: collapse; margin: 1rem 0} td, th {padding: .2rem .8rem; border-bottom: 1px solid #ddd}
td {text-align: right; font-variant-numeric: tabular-nums} td:first-child, th {text-align: left}
.bad {color: #b2182b; font-weight: 600}
"""


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table; everything in it is text."""
    cells = ["".join(f"<td>{html.escape(cell)}</td>" for cell in row) for row in rows]
    header = "".join(f"<th>{html.escape(cell)}</th>" for cell in head)
    return f"<table><tr>{header}</tr>{''.join(f'<tr>{row}</tr>' for row in cells)}</table>"


def section(title: str, results: Results) -> str:
    """The figures and plots of one contest."""
    figures = [[what, *(_plain(shown(found)) for found in results.values())] for what, shown in FIGURES.items()]
    plots = "".join(
        plot.to_html(full_html=False, include_plotlyjs=False) for plot in (_curves(results), _times(results))
    )
    return f"<h2>{html.escape(title)}</h2>{table(['medians', *results], figures)}{plots}"


def page(title: str, facts: Mapping[str, str], sections: Sequence[str]) -> str:
    """A whole page of sections, with the library that draws the plots inside."""
    return (
        f"<!doctype html><html lang='en'><meta charset='utf-8'><title>{html.escape(title)}</title>"
        f"<style>{STYLE}</style><script>{get_plotlyjs()}</script><h1>{html.escape(title)}</h1>"
        f"{table(['', ''], facts.items())}{''.join(sections)}</html>"
    )


def _plain(text: str) -> str:
    return text.replace("[red]", "").replace("[/red]", "")


def _curves(results: Results) -> go.Figure:
    """The rate of every round, and latency by percentile over all rounds."""
    figure = make_subplots(rows=1, cols=2, subplot_titles=("messages a second, by round", "latency by percentile, ms"))
    for colour, (name, found) in zip(COLOURS * len(results), results.items(), strict=False):
        rounds = list(range(1, len(found) + 1))
        look = {"name": name, "legendgroup": name, "marker_color": colour}
        figure.add_trace(go.Bar(x=rounds, y=[each.rate for each in found], **look), row=1, col=1)
        joined = type(found[0].latencies)()
        for each in found:
            joined.add(each.latencies)
        # Equal steps for 90, 99, 99.9 %: the x axis is 1 / (1 - percentile).
        steps = [1 / (1 - min(percent, 99.999) / 100) for percent in CURVE]
        figure.add_trace(
            go.Scatter(
                x=steps, y=[joined.percentile(percent) for percent in CURVE], text=[f"{p:g} %" for p in CURVE],
                showlegend=False, **look,
            ),
            row=1,
            col=2,
        )  # fmt: skip
    ticks = {
        "tickvals": [1, 2, 10, 100, 1_000, 10_000, 100_000],
        "ticktext": ["0", "50", "90", "99", "99.9", "99.99", "max"],
    }
    figure.update_xaxes(type="log", row=1, col=2, **ticks)
    figure.update_yaxes(type="log", row=1, col=2)
    figure.update_xaxes(dtick=1, row=1, col=1)
    return figure


def _times(results: Results) -> go.Figure:
    """The course of each forwarder's last round."""
    courses: dict[str, Callable[[Measurement], tuple[Sequence[float], Sequence[float]]]] = {
        "messages a second": lambda each: _arrivals(each, lambda interval: interval.messages * 1e9 / BIN_NS),
        "latency p99, ms": lambda each: _arrivals(each, lambda interval: interval.latencies.percentile(99)),
        "CPU of the forwarder, cores": lambda each: ([s.at for s in each.samples], [s.cpu for s in each.samples]),
        "memory of the forwarder, MB": lambda each: (
            [s.at for s in each.samples],
            [s.resident / 1e6 for s in each.samples],
        ),
    }
    figure = make_subplots(rows=2, cols=2, subplot_titles=tuple(courses), vertical_spacing=0.15)
    for colour, (name, found) in zip(COLOURS * len(results), results.items(), strict=False):
        for number, course in enumerate(courses.values()):
            seconds, values = course(found[-1])
            figure.add_trace(
                go.Scatter(x=seconds, y=values, name=name, legendgroup=name, line_color=colour, showlegend=number == 0),
                row=number // 2 + 1,
                col=number % 2 + 1,
            )
    figure.update_xaxes(title="seconds, last round", row=2)
    figure.update_yaxes(rangemode="tozero")
    figure.update_layout(height=640)
    return figure


def _arrivals(found: Measurement, value: Callable[[Any], float]) -> tuple[list[float], list[float]]:
    in_order = sorted(found.intervals.items())
    return [(number * BIN_NS - found.began_ns) / 1e9 for number, _ in in_order], [value(each) for _, each in in_order]
