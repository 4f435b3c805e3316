"""`make chaos`: the second column of the fault programme. It can be interrupted, and goes on where it was."""

from __future__ import annotations

import json
import sys
import time
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from tests.faults.plan import plans
from tests.faults.report import write_report
from tests.faults.timeline import Outcome
from tests.faults.worker import CACHE, end_in_order, perform

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tests.faults.plan import Plan

DOCS = Path("docs/faults")
_console = Console()


def main(
    *,
    seed: Annotated[int, typer.Option(help="the same seed gives the same faults at the same moments")] = 1,
    wanted: Annotated[str, typer.Option("--filter", help="only faults with this in their group or name")] = "",
    hours: Annotated[float, typer.Option(help="begin no run after so many hours")] = 24.0,
    jobs: Annotated[int, typer.Option(min=1, help="runs at once, each between brokers of its own")] = 2,
    quick: Annotated[bool, typer.Option(help="the first column, as in `make test`")] = False,
    results: Annotated[Path, typer.Option(help="JSON lines; a run that is in it is not repeated")] = (
        CACHE / "results.jsonl"
    ),
    report: Annotated[bool, typer.Option(help="write the report of all results to docs/faults/")] = False,
) -> None:
    """Run faults against the service between real brokers, and judge what comes of them."""
    end_in_order()
    outcomes = _read(results)
    done = {outcome.key for outcome in outcomes}
    open_plans = [plan for plan in plans(seed, quick=quick, wanted=wanted) if plan.key not in done]
    _console.print(f"seed {seed}: {len(open_plans)} runs to do, {len(outcomes)} in {results}")
    if open_plans:
        outcomes += _perform(open_plans, results, wanted=wanted, jobs=jobs, until=time.monotonic() + hours * 3600)
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


def _perform(open_plans: Iterable[Plan], results: Path, *, wanted: str, jobs: int, until: float) -> list[Outcome]:
    """Do the runs, so many at once, each in a process of its own, and keep each outcome at once."""
    todo = list(open_plans)
    results.parent.mkdir(parents=True, exist_ok=True)
    outcomes: list[Outcome] = []
    columns = (
        *(SpinnerColumn(), TextColumn("{task.description}", markup=False), BarColumn()),
        *(MofNCompleteColumn(), TimeElapsedColumn()),
    )
    pool = ProcessPoolExecutor(jobs, mp_context=get_context("spawn"), initializer=end_in_order)
    with pool, Progress(*columns, console=_console) as progress:
        bar = progress.add_task("starting", total=sum(len(plan.faults) for plan in todo))
        running: dict[Future[Outcome], Plan] = {}
        while True:
            while todo and len(running) < jobs and time.monotonic() < until:
                plan = todo.pop(0)
                running[pool.submit(perform, plan.key, plan.seed, quick=plan.quick, wanted=wanted)] = plan
            if not running:
                break
            progress.update(bar, description=", ".join(plan.name for plan in running.values()))
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                plan, outcome = running.pop(future), future.result()
                outcomes.append(outcome)
                with results.open("a") as file:
                    file.write(json.dumps(outcome.asdict()) + "\n")
                _tell(progress, plan, outcome)
                progress.advance(bar, len(plan.faults))
    return outcomes


def _tell(progress: Progress, plan: Plan, outcome: Outcome) -> None:
    colour = "red" if outcome.violations else "green"
    progress.print(
        f"[{colour}]{plan.name}[/]: {len(plan.faults)} faults in {outcome.seconds:.0f} s, "
        f"{outcome.published} messages to 4 mappings, {outcome.repeats} repeats, "
        f"{len(outcome.violations)} violations",
        highlight=False,
    )
    for violation in outcome.violations[:5]:
        progress.print(f"    {violation}", markup=False, highlight=False)


if __name__ == "__main__":
    typer.run(main)
