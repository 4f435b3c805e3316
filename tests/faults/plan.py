"""Which faults make up which run, from a seed."""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from tests.faults.run import Case, Run
from tests.faults.table import GROUPS, TABLE

if TYPE_CHECKING:
    from pathlib import Path

    from tests.faults.history import History
    from tests.faults.run import Brokers
    from tests.faults.table import Kind

# A run must fit into a test and into memory; what went wrong in one should be easy to find.
MOST_IN_A_RUN = 12
# Short faults need a service that notices soon that its broker is gone.
QUICK_KEEP_ALIVE, CHAOS_KEEP_ALIVE = "5s", "15s"


@dataclass(frozen=True, slots=True)
class Plan:
    """One run: faults in their order, each with the number of its turn."""

    name: str
    seed: int
    quick: bool
    faults: tuple[tuple[Kind, int], ...]

    @property
    def key(self) -> str:
        """What tells it from every other run of every seed."""
        return f"{self.seed}/{'test' if self.quick else 'chaos'}/{self.name}"

    async def perform(self, run: Run) -> History:
        """Do the faults.

        Raises:
            RunError: something did not recover.
        """
        rng = random.Random(self.key)  # noqa: S311 - not a secret
        async with run.running():
            for kind, turn in self.faults:
                case = Case(random.Random(rng.random()), turn, self.quick)  # noqa: S311
                await run.suffer(kind.name, kind.cost, partial(kind.do, run, case))
        return run.history

    def run(self, folder: Path, brokers: Brokers) -> Run:
        """Make the run, in a folder of its own."""
        keep_alive = QUICK_KEEP_ALIVE if self.quick else CHAOS_KEEP_ALIVE
        return Run(self.name, self.seed, folder, brokers, keep_alive=keep_alive)


def plans(seed: int, *, quick: bool, wanted: str = "") -> list[Plan]:
    """The runs of the first (`quick`) or the second column; only faults with `wanted` in their group or name.

    The first column is short enough to mix all groups; in the second each has its own runs, to be read on its own.
    """
    made: list[Plan] = []
    for title, groups in [("mixed", GROUPS)] if quick else [(group.lower(), (group,)) for group in GROUPS]:
        faults = [
            (kind, turn)
            for kind in TABLE
            if kind.group in groups and wanted.lower() in f"{kind.group}: {kind.name}".lower()
            for turn in range(kind.quick if quick else kind.chaos)
        ]
        random.Random(f"{seed} {title}").shuffle(faults)  # noqa: S311 - not a secret
        for start in range(0, len(faults), MOST_IN_A_RUN):
            name = f"{title}-{start // MOST_IN_A_RUN + 1:02}"
            made.append(Plan(name, seed, quick, tuple(faults[start : start + MOST_IN_A_RUN])))
    return made
