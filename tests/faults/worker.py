"""One run of the fault programme in a process of its own, which leaves nothing behind however it ends."""

from __future__ import annotations

import asyncio
import pickle
import shutil
import signal
import sys
import tempfile
from datetime import UTC, datetime
from multiprocessing import active_children
from pathlib import Path

from tests.brokers import BrokerError
from tests.faults.checker import violations
from tests.faults.history import Violation
from tests.faults.plan import plans
from tests.faults.run import Brokers, RunError
from tests.faults.timeline import Outcome

CACHE = Path(".cache/chaos")


def end_in_order() -> None:
    """On SIGTERM end as after Ctrl-C: brokers are stopped and disks unmounted."""
    signal.signal(signal.SIGTERM, _end)


def _end(*_: object) -> None:
    for child in active_children():
        child.terminate()
    sys.exit(1)


def perform(key: str, seed: int, *, quick: bool, wanted: str) -> Outcome:
    """Do one run between brokers of its own; what is needed to understand a violation stays in the cache."""
    (plan,) = [each for each in plans(seed, quick=quick, wanted=wanted) if each.key == key]
    folder = Path(tempfile.mkdtemp(prefix="chaos-"))
    date = datetime.now(UTC).isoformat(timespec="seconds")
    try:
        with Brokers.make(folder / "brokers") as brokers:
            run = plan.run(folder / "run", brokers)
            try:
                asyncio.run(plan.perform(run))
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
