"""A test marked `alone` runs when no other does, and comes to its turn while others go on (tests/turns.py)."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.realtime import until
from tests.turns import turn

if TYPE_CHECKING:
    from collections.abc import Iterator


class Runner:
    """Another process of the tests, played by a thread: flock tells open files apart, not processes."""

    def __init__(self, folder: Path, *, alone: bool) -> None:
        self.running, self._end = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, args=(folder,), kwargs={"alone": alone})
        self._thread.start()

    def _run(self, folder: Path, *, alone: bool) -> None:
        with turn(alone=alone, folder=folder):
            self.running.set()
            self._end.wait()

    def end(self) -> None:
        """Let it end, and wait until it has."""
        self._end.set()
        self._thread.join()


class Runners:
    """Those that share a folder of locks."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._all: list[Runner] = []

    def add(self, *, alone: bool) -> Runner:
        self._all.append(Runner(self._folder, alone=alone))
        return self._all[-1]

    @property
    def waiting(self) -> int:
        """How many wait for a lock, as the kernel tells (proc(5), /proc/locks)."""
        inodes = {str(file.stat().st_ino) for file in self._folder.iterdir()}
        waiting = [line.split() for line in Path("/proc/locks").read_text().splitlines() if "->" in line]
        return sum(words[6].split(":")[2] in inodes for words in waiting)

    def end(self) -> None:
        """Let all end that have not."""
        for runner in self._all:
            runner.end()


@pytest.fixture
def runners(tmp_path: Path) -> Iterator[Runners]:
    made = Runners(tmp_path)
    yield made
    made.end()


async def test_tests_run_side_by_side(runners: Runners) -> None:
    first, second = runners.add(alone=False), runners.add(alone=False)
    await until(lambda: first.running.is_set() and second.running.is_set())


async def test_one_that_wants_to_be_alone_waits_for_those_that_run_and_goes_before_those_that_come(
    runners: Runners,
) -> None:
    first = runners.add(alone=False)
    await until(first.running.is_set)
    alone = runners.add(alone=True)
    await until(lambda: runners.waiting == 1)
    later = runners.add(alone=False)
    await until(lambda: runners.waiting == 2)
    assert not alone.running.is_set()
    first.end()
    await until(alone.running.is_set)
    assert not later.running.is_set()
    alone.end()
    await until(later.running.is_set)
