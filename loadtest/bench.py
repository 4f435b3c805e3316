"""`make bench` and `make bench-full`: every target as a row, measured in one run."""

from __future__ import annotations

import json
import time
from pathlib import Path  # noqa: TC003 - typer looks at it
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from loadtest import terminal
from loadtest.contest import good
from loadtest.document import document
from loadtest.experiments import FULL, SHORT, Experiments
from loadtest.machine import described
from loadtest.page import page, section, table
from loadtest.site import own_site
from loadtest.targets import NOT_MEASURED, TARGETS, Finding, Target
from loadtest.trial import NO_RESULT

if TYPE_CHECKING:
    from collections.abc import Sequence

    from loadtest.measurement import Measurement

HEAD = ("", "target", "measured", "ratio", "")
app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


@app.command()
def main(
    *,
    full: Annotated[bool, typer.Option("--full", help="all rows, more rounds; an hour rather than minutes")] = False,
    prototype: Annotated[
        Path | None, typer.Option(exists=True, help="fast_lane.py; without it no row compares with it")
    ] = None,
    only: Annotated[str, typer.Option(help="rows whose text contains this")] = "",
    json_file: Annotated[Path | None, typer.Option("--json", help="write everything measured there")] = None,
    html_file: Annotated[Path | None, typer.Option("--html", help="write a page with plots there")] = None,
) -> None:
    """Measure every target. Exit code 1: messages were lost or out of order."""
    console = Console(width=120)
    began = time.monotonic()

    def tell(title: str, number: int, found: Measurement) -> None:
        console.print(f"{time.monotonic() - began:>5.0f} s  {title}: {terminal.line(number, found)}", highlight=False)

    rows = [row for row in TARGETS if only in f"{row.what} {row.wanted}"]
    with own_site() as site:
        made = Experiments(site, FULL if full else SHORT, prototype, tell)
        findings = [NOT_MEASURED if row.long and not full else _found(row, made, console) for row in rows]
    console.print(_table(rows, findings))
    lines = [
        [row.what, row.wanted, found.measured, found.ratio, _said(found)]
        for row, found in zip(rows, findings, strict=True)
    ]
    facts = described() | {"took": f"{(time.monotonic() - began) / 60:.1f} minutes"}
    console.print(f"{facts['took']}, {facts['cpu']}", highlight=False)
    if json_file is not None:
        contests = {title: document(results) for title, results in made.contests.items()}
        json_file.write_text(json.dumps({"machine": facts, "targets": lines, "contests": contests}, indent=1))
    if html_file is not None:
        sections = [section(title, results) for title, results in made.contests.items()]
        html_file.write_text(page("Benchmark", facts, ["<h2>Targets</h2>" + table(HEAD, lines), *sections]))
    bad = [title for title, results in made.contests.items() if not good(results)]
    if bad:
        console.print(f"[red]messages were lost or out of order:[/red] {'; '.join(bad)}")
    raise typer.Exit(1 if bad else 0)


def _found(row: Target, made: Experiments, console: Console) -> Finding:
    """What a row finds; a measurement that fails costs its own rows only."""
    try:
        return row.find(made)
    except NO_RESULT as error:
        console.print(f"[red]{row.what}:[/red] {error}", highlight=False)
        return NOT_MEASURED


def _said(found: Finding) -> str:
    return "" if found.met is None else "met" if found.met else "NOT MET"


def _table(rows: Sequence[Target], findings: Sequence[Finding]) -> Table:
    made = Table(title="Targets", title_justify="left")
    for column in HEAD:
        made.add_column(column)
    for row, found in zip(rows, findings, strict=True):
        colour = {True: "green", False: "red", None: "dim"}[found.met]
        made.add_row(row.what, row.wanted, found.measured, found.ratio, f"[{colour}]{_said(found)}[/{colour}]")
    return made


if __name__ == "__main__":
    app()
