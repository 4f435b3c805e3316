"""The report of `make chaos`: Markdown to read, and one HTML file with a time line per run that needs no network."""

from __future__ import annotations

from collections import defaultdict
from html import escape
from typing import TYPE_CHECKING

from tests.faults.drawing import draw
from tests.faults.table import TABLE

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tests.faults.timeline import FaultSpan, Outcome

_STYLE = """
body { font: 14px/1.4 system-ui, sans-serif; margin: 2em auto; max-width: 1100px; color: #222; }
table { border-collapse: collapse; } td, th { padding: 2px 10px; text-align: right; border-bottom: 1px solid #ddd; }
td:first-child, th:first-child { text-align: left; } .bad { color: #b00; } svg { display: block; margin: .5em 0 2em; }
h2 { margin-top: 2em; font-size: 1.1em; } svg text { font: 10px system-ui, sans-serif; }
"""


def write_report(outcomes: Sequence[Outcome], folder: Path, *, command: str) -> list[Path]:
    """Write both files, and return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    markdown, html = folder / "README.md", folder / "report.html"
    markdown.write_text(_markdown(outcomes, command))
    html.write_text(_html(outcomes, command))
    return [markdown, html]


def _markdown(outcomes: Sequence[Outcome], command: str) -> str:
    lines = [
        "# The fault programme: what came of it",
        "",
        f"`{command}`, {_dates(outcomes)}. {_summary(outcomes)}",
        "",
        "Each fault hits two services at once, one over MQTT 5, one over 3.1.1, each with a mapping at QoS 1 and one",
        "at QoS 2, under 200 messages a second on 50 topics. Recovery is the time from the end of a fault until every",
        "mapping has written a message that the broker accepted after it. Time lines: [report.html](report.html).",
        "How it works: [programme.md](programme.md). What it found: [findings.md](findings.md).",
        "",
        "| fault | times | recovery, median s | worst s |",
        "|---|---:|---:|---:|",
        *(f"| {' | '.join(row)} |" for row in _kinds(outcomes)),
        "",
        "| run | seconds | faults | messages | repeats | most memory MB | violations |",
        "|---|---:|---:|---:|---:|---:|---:|",
        *(f"| {' | '.join(row)} |" for row in _runs(outcomes)),
        "",
    ]
    for outcome in outcomes:
        if outcome.violations or outcome.skipped:
            lines += [f"## {outcome.key}", "", *(f"- {each}" for each in outcome.violations[:20])]
            lines += [*(f"- skipped: {each}" for each in outcome.skipped), ""]
    return "\n".join(lines)


def _html(outcomes: Sequence[Outcome], command: str) -> str:
    parts = [
        f"<!doctype html><meta charset='utf-8'><title>Fault programme</title><style>{_STYLE}</style>",
        f"<h1>The fault programme</h1><p><code>{escape(command)}</code>, {_dates(outcomes)}. {_summary(outcomes)}</p>",
        _table(("fault", "times", "recovery, median s", "worst s"), _kinds(outcomes)),
    ]
    for outcome in outcomes:
        parts.append(
            f"<h2>{escape(outcome.key)}</h2><p>{outcome.seconds:.0f} s, {outcome.published} messages to "
            f"{len(outcome.delivered)} mappings, {outcome.repeats} repeats, most memory "
            f"{max(outcome.memory.values(), default=0):.0f} MB</p>"
        )
        parts += [f"<p class='bad'>{escape(each)}</p>" for each in outcome.violations[:20]]
        parts.append(draw(outcome))
    return "\n".join(parts)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    cells = ["<tr>" + "".join(f"<th>{escape(each)}</th>" for each in head) + "</tr>"]
    cells += ["<tr>" + "".join(f"<td>{escape(each)}</td>" for each in row) + "</tr>" for row in rows]
    return f"<table>{''.join(cells)}</table>"


def _dates(outcomes: Sequence[Outcome]) -> str:
    dates = sorted(outcome.date[:10] for outcome in outcomes)
    if not dates:
        return "never run"
    return dates[0] if dates[0] == dates[-1] else f"{dates[0]} to {dates[-1]}"


def _summary(outcomes: Sequence[Outcome]) -> str:
    faults = sum(len(outcome.faults) for outcome in outcomes)
    hours = sum(outcome.seconds for outcome in outcomes) / 3600
    broken = sum(bool(outcome.violations) for outcome in outcomes)
    published, stored, repeats = (
        sum(getattr(outcome, column) for outcome in outcomes) for column in ("published", "stored", "repeats")
    )
    return (
        f"{len(outcomes)} runs, {faults} faults in {hours:.1f} hours, {published} messages published, {stored} records "
        f"in Kafka, {repeats} of them repeats; {broken} runs broke an invariant."
    )


def _kinds(outcomes: Sequence[Outcome]) -> list[tuple[str, ...]]:
    spans: defaultdict[str, list[FaultSpan]] = defaultdict(list)
    for outcome in outcomes:
        for fault in outcome.faults:
            spans[fault.name].append(fault)
    rows: list[tuple[str, ...]] = []
    for kind in TABLE:
        found = spans.get(kind.name)
        if found is None:
            continue
        times = sorted(each.recovered - each.end for each in found if each.recovered is not None)
        median, worst = (f"{times[len(times) // 2]:.1f}", f"{times[-1]:.1f}") if times else ("", "")
        rows.append((kind.name, str(len(found)), median, worst))
    return rows


def _runs(outcomes: Sequence[Outcome]) -> list[tuple[str, ...]]:
    return [
        (
            outcome.key,
            f"{outcome.seconds:.0f}",
            str(len(outcome.faults)),
            str(outcome.published),
            str(outcome.repeats),
            f"{max(outcome.memory.values(), default=0):.0f}",
            str(len(outcome.violations)),
        )
        for outcome in outcomes
    ]
