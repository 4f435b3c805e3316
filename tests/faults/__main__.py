"""`make chaos`: the second column of the fault programme. It can be interrupted, and goes on where it was."""

from __future__ import annotations

import asyncio
import json
import pickle
import shutil
import signal
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from tests.brokers import BrokerError
from tests.faults.checker import violations
from tests.faults.history import Violation
from tests.faults.plan import plans
from tests.faults.report import write_report
from tests.faults.run import Brokers, RunError
from tests.faults.timeline import Outcome

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from tests.faults.plan import Plan

CACHE = Path(".cache/chaos")
DOCS = Path("docs/faults")
_console = Console()


def main(
    *,
    seed: Annotated[int, typer.Option(help="the same seed gives the same faults at the same moments")] = 1,
    wanted: Annotated[str, typer.Option("--filter", help="only faults with this in their group or name")] = "",
    hours: Annotated[float, typer.Option(help="begin no run after so many hours")] = 24.0,
    quick: Annotated[bool, typer.Option(help="the first column, as in `make test`")] = False,
    results: Annotated[Path, typer.Option(help="JSON lines; a run that is in it is not repeated")] = (
        CACHE / "results.jsonl"
    ),
    report: Annotated[bool, typer.Option(help="write the report of all results to docs/faults/")] = False,
) -> None:
    """Run faults against the service between real brokers, and judge what comes of them."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that disks are unmounted, as after Ctrl-C
    outcomes = _read(results)
    done = {outcome.key for outcome in outcomes}
    open_plans = [plan for plan in plans(seed, quick=quick, wanted=wanted) if plan.key not in done]
    _console.print(f"seed {seed}: {len(open_plans)} runs to do, {len(outcomes)} in {results}")
    if open_plans:
        outcomes += _perform(open_plans, results, until=time.monotonic() + hours * 3600)
    if report:
        for path in write_report(outcomes, DOCS, command=" ".join(["python -m tests.faults", *sys.argv[1:]])):
            _console.print(f"written: {path}")
    broken = [outcome for outcome in outcomes if outcome.violations]
    for outcome in broken:
        _console.print(f"[red]{outcome.key}: {len(outcome.violations)} violations", highlight=False)
    raise typer.Exit(1 if broken else 0)


def _read(results: Path) -> list[Outcome]:
    if not results.exists():
        return []
    return [Outcome.load(json.loads(line)) for line in results.read_text().splitlines()]


def _perform(open_plans: Iterable[Plan], results: Path, *, until: float) -> list[Outcome]:
    """Do the runs, and keep each outcome at once."""
    todo = list(open_plans)
    results.parent.mkdir(parents=True, exist_ok=True)
    outcomes: list[Outcome] = []
    columns = (
        *(SpinnerColumn(), TextColumn("{task.description}", markup=False), BarColumn()),
        *(MofNCompleteColumn(), TimeElapsedColumn()),
    )
    with Progress(*columns, console=_console) as progress:
        bar = progress.add_task("starting", total=sum(len(plan.faults) for plan in todo))
        for plan in todo:
            if time.monotonic() > until:
                break

            def begun(fault: str, plan: Plan = plan) -> None:
                progress.update(bar, description=f"{plan.name}: {fault}", advance=1)

            outcome = _one(plan, begun)
            outcomes.append(outcome)
            with results.open("a") as file:
                file.write(json.dumps(outcome.asdict()) + "\n")
            colour = "red" if outcome.violations else "green"
            progress.print(
                f"[{colour}]{plan.name}[/]: {len(plan.faults)} faults in {outcome.seconds:.0f} s, "
                f"{outcome.published} messages to 4 mappings, {outcome.repeats} repeats, "
                f"{len(outcome.violations)} violations",
                highlight=False,
            )
            for violation in outcome.violations[:5]:
                progress.print(f"    {violation}", markup=False, highlight=False)
    return outcomes


def _one(plan: Plan, begun: Callable[[str], None]) -> Outcome:
    """Do one run between brokers of its own; what is needed to understand a violation stays in the cache."""
    folder = Path(tempfile.mkdtemp(prefix="chaos-"))
    date = datetime.now(UTC).isoformat(timespec="seconds")
    try:
        with Brokers.make(folder / "brokers") as brokers:
            run = plan.run(folder / "run", brokers)
            try:
                asyncio.run(plan.perform(run, begun))
            except (RunError, BrokerError) as error:
                found = [Violation(7, f"the run could not go on: {error}")]
            else:
                found = violations(run.history)
        if found:
            kept = CACHE / plan.key.replace("/", "-")
            shutil.rmtree(kept, ignore_errors=True)
            shutil.copytree(folder, kept, ignore=shutil.ignore_patterns("data", "*.img", "lost+found"))
            (kept / "history.pickle").write_bytes(pickle.dumps(run.history))
        return Outcome.of(plan, run.history, found, date=date, skipped=run.skipped)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    typer.run(main)
