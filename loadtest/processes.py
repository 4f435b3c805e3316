"""What processes cost: CPU and memory of a process and everything it has started, now and over time."""

from __future__ import annotations

import contextlib
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

import psutil

if TYPE_CHECKING:
    from collections.abc import Mapping

SAMPLE_SECONDS = 0.25
OTHERS = "all others"


@dataclass(frozen=True, slots=True)
class Usage:
    """CPU seconds since it began, and bytes resident now."""

    cpu_seconds: float
    resident: int


@dataclass(frozen=True, slots=True)
class Sample:
    """A process at a time: seconds since the measurement began, CPU since the last sample in cores, resident bytes."""

    at: float
    cpu: float
    resident: int


def usage(pid: int) -> Usage:
    """What a process and its descendants have used; nothing if it is gone.

    A process that has ended still shows its CPU until its parent has waited for it; ended descendants don't count.
    """
    cpu, resident = 0.0, 0
    try:
        root = psutil.Process(pid)
        family = [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return Usage(0.0, 0)
    for process in family:
        with contextlib.suppress(psutil.NoSuchProcess, OSError):
            cpu += time.clock_gettime(_cpu_clock(process.pid))
            resident += process.memory_info().rss
    return Usage(cpu, resident)


def _busy_seconds() -> float:
    """The CPU seconds all processes of the machine have used."""
    times = psutil.cpu_times()
    return times.user + times.nice + times.system


def _cpu_clock(pid: int) -> int:
    """The id of the clock that shows a process's CPU time in nanoseconds; /proc shows hundredths of a second."""
    return ~pid << 3 | 2  # as clock_getcpuclockid(3) makes it


def peak_resident(pid: int) -> int:
    """The most memory in bytes that a process ever had resident; 0 if it is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), 0)


class Watch:
    """Measures processes (pids by name) from `begin()` to `end()`; samples one of them, the forwarder, meanwhile."""

    def __init__(self, pids: Mapping[str, int], sampled: int) -> None:
        self._pids = pids
        self._sampled = sampled
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._sample, name="watch", daemon=True)
        self.samples: list[Sample] = []
        self.seconds = 0.0
        self.cpu: dict[str, float] = {}
        self.peak = 0

    def begin(self) -> Self:
        """Start the clock."""
        self._before = {name: usage(pid) for name, pid in self._pids.items()}
        self._machine_before = _busy_seconds()
        self._began = time.monotonic()
        self._thread.start()
        return self

    def end(self) -> None:
        """Stop the clock: `seconds`, `peak` (bytes) and `cpu` are what was used since `begin()`.

        `cpu` is seconds by name; under OTHERS is what everything else on the machine used.
        """
        self.seconds = time.monotonic() - self._began
        self.cpu = {name: usage(pid).cpu_seconds - self._before[name].cpu_seconds for name, pid in self._pids.items()}
        self.cpu[OTHERS] = max(0.0, _busy_seconds() - self._machine_before - sum(self.cpu.values()))
        self._ended.set()
        self._thread.join()
        # The kernel's own peak misses nothing between samples, but knows one process only.
        self.peak = max(peak_resident(self._sampled), *(sample.resident for sample in self.samples), 0)

    def _sample(self) -> None:
        last, at = usage(self._sampled), time.monotonic()
        while not self._ended.wait(SAMPLE_SECONDS):
            now, then = usage(self._sampled), time.monotonic()
            self.samples.append(
                Sample(then - self._began, (now.cpu_seconds - last.cpu_seconds) / (then - at), now.resident)
            )
            last, at = now, then
