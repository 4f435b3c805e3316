"""Which faults make up which run, from a seed."""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from tests.faults.run import Case, Run
from tests.faults.table import GROUPS, TABLE

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.faults.history import History
    from tests.faults.run import Brokers
    from tests.faults.table import Kind

# A run must fit into a test and into memory; what went wrong in one should be easy to find.
MOST_IN_A_RUN = 10
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

    async def perform(self, run: Run, begun: Callable[[str], None] = lambda _: None) -> History:
        """Do the faults; `begun` hears of each.

        Raises:
            RunError: something did not recover.
        """
        rng = random.Random(self.key)  # noqa: S311 - not a secret
        async with run.running():
            for kind, turn in self.faults:
                begun(kind.name)
                case = Case(random.Random(rng.random()), turn, self.quick)  # noqa: S311
                await run.suffer(kind.name, kind.cost, partial(kind.do, run, case))
        return run.history

    def run(self, folder: Path, brokers: Brokers) -> Run:
        """Make the run, in a folder of its own."""
        keep_alive = QUICK_KEEP_ALIVE if self.quick else CHAOS_KEEP_ALIVE
        return Run(self.name, self.seed, folder, brokers, keep_alive=keep_alive)


def plans(seed: int, *, quick: bool, wanted: str = "") -> list[Plan]:
    """The runs of the first (`quick`) or the second column; only faults with `wanted` in their group or name."""
    made: list[Plan] = []
    for group in GROUPS:
        faults = [
            (kind, turn)
            for kind in TABLE
            if kind.group == group and wanted.lower() in f"{group}: {kind.name}".lower()
            for turn in range(kind.quick if quick else kind.chaos)
        ]
        random.Random(f"{seed} {group}").shuffle(faults)  # noqa: S311 - not a secret
        for start in range(0, len(faults), MOST_IN_A_RUN):
            name = group.lower() if quick else f"{group.lower()}-{start // MOST_IN_A_RUN + 1:02}"
            made.append(Plan(name, seed, quick, tuple(faults[start : start + MOST_IN_A_RUN])))
    return made
