"""The fault programme, its first column: `make test` runs it, `--fault-seed` repeats it, `--fault-filter` narrows it.

One run a group of faults, in an order and at moments of the seed, which is printed. `make chaos` runs the second.
"""

from __future__ import annotations

import random
from functools import partial
from typing import TYPE_CHECKING

import pytest

from tests.faults.checker import violations
from tests.faults.run import Brokers, Case, Run
from tests.faults.table import GROUPS, TABLE

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

KEEP_ALIVE = "5s"


@pytest.fixture(scope="module")
def brokers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Brokers]:
    """Return the brokers that all runs share."""
    with Brokers.make(tmp_path_factory.mktemp("brokers")) as started:
        yield started


@pytest.mark.timeout(300)
@pytest.mark.parametrize("group", GROUPS)
async def test_nothing_is_lost_and_nothing_lied_about(
    brokers: Brokers, tmp_path: Path, pytestconfig: pytest.Config, group: str
) -> None:
    seed = pytestconfig.getoption("--fault-seed")
    wanted = pytestconfig.getoption("--fault-filter").lower()
    rng = random.Random(f"{seed} {group}")  # noqa: S311 - not a secret
    faults = [(kind, turn) for kind in TABLE if kind.group == group for turn in range(kind.quick)]
    faults = [(kind, turn) for kind, turn in faults if wanted in f"{group}: {kind.name}".lower()]
    if not faults:
        pytest.skip(f"no fault of {group} has {wanted!r} in its name")
    rng.shuffle(faults)
    run = Run(group.lower(), seed, tmp_path, brokers, keep_alive=KEEP_ALIVE)
    async with run.running():
        for kind, turn in faults:
            case = Case(random.Random(rng.random()), turn, quick=True)  # noqa: S311
            await run.suffer(kind.name, kind.cost, partial(kind.do, run, case))
    found = violations(run.history)
    assert not found, f"--fault-seed {seed}: {len(found)} violations\n" + "\n".join(map(str, found[:20]))
    if run.skipped:
        pytest.skip("; ".join(run.skipped))
