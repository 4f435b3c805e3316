"""The tool that measures each step of the fast path alone (loadtest/steps.py)."""

from __future__ import annotations

import pytest
from typer import Typer
from typer.testing import CliRunner

from loadtest.steps import main, steps

STEPS = {
    "decode packets (mqtt5, Rust)",
    "see whether they may be taken",
    "place them in lanes",
    "build batches (encoding by aiokafka, C)",
    "CRC-32C and header of batches (aiokafka, C)",
    "acknowledge",
    "free them",
}


@pytest.mark.parametrize("size", [50, 10_000])
async def test_each_step_has_its_least_time(size: int) -> None:
    least = await steps(2, size)
    assert set(least) == STEPS
    assert all(nanoseconds > 0 for nanoseconds in least.values())


def test_it_prints_the_dearest_step_first() -> None:
    tool = Typer()
    tool.command()(main)
    printed = CliRunner().invoke(tool, ["--turns", "1", "--size", "20"])
    assert printed.exit_code == 0, printed.output
    figures = [int(line.split()[0]) for line in printed.output.splitlines()]
    assert len(figures) == len(STEPS)
    assert figures == sorted(figures, reverse=True)
