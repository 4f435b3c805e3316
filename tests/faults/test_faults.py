"""The fault programme, its first column: `--fault-seed` repeats it, `--fault-filter` narrows it.

A few runs of a dozen faults, in an order and at moments of the seed, which pytest prints. `make chaos` runs the second.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.faults.checker import violations
from tests.faults.plan import plans
from tests.faults.run import Brokers

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(scope="module")
def brokers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Brokers]:
    """Return the brokers that all runs share."""
    with Brokers.make(tmp_path_factory.mktemp("brokers")) as started:
        yield started


@pytest.mark.alone  # three Kafkas, two services, and limits of seconds on what they may take to notice and recover
@pytest.mark.timeout(300)
@pytest.mark.parametrize("number", range(len(plans(0, quick=True))))
async def test_nothing_is_lost_and_nothing_lied_about(
    brokers: Brokers, tmp_path: Path, pytestconfig: pytest.Config, number: int
) -> None:
    seed, wanted = pytestconfig.getoption("--fault-seed"), pytestconfig.getoption("--fault-filter")
    planned = plans(seed, quick=True, wanted=wanted)
    if number >= len(planned):
        pytest.skip(f"{wanted!r} leaves fewer runs")
    plan = planned[number]
    run = plan.run(tmp_path, brokers)
    found = violations(await plan.perform(run))
    assert not found, f"--fault-seed {seed}: {len(found)} violations\n" + "\n".join(map(str, found[:20]))
    if run.skipped:
        pytest.skip("; ".join(run.skipped))
