"""What may have limited a measurement besides the forwarder: the broker, Kafka, the tool, the machine, noise."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from loadtest.measurement import FORWARDER
from loadtest.processes import OTHERS

if TYPE_CHECKING:
    from loadtest.measurement import Measurement

# A process with one busy thread seldom gets more than this of a core from a scheduler that has others to serve.
BUSY_CORE = 0.85
BUSY_MACHINE = 0.9
# So many cores for programs that have nothing to do with it are noise.
NOISE = 0.2
# Kafka and librdkafka have many threads; these processes have one.
ONE_THREAD = ("mosquitto", "publisher", FORWARDER)


def cores(measurement: Measurement) -> dict[str, float]:
    """The cores each process used while messages flowed, by name."""
    busy_seconds = min(measurement.seconds, measurement.watched_seconds)
    return {name: seconds / busy_seconds for name, seconds in measurement.cpu.items()}


def limits(measurement: Measurement, machine_cores: int | None = None) -> list[str]:
    """Say what was at its limit, if anything was."""
    used = cores(measurement)
    found = [
        f"{name} used {share:.0%} of the one core it can use"
        for name, share in used.items()
        if name.startswith(ONE_THREAD) and share >= BUSY_CORE
    ]
    available = machine_cores or os.cpu_count() or 1
    if sum(used.values()) >= BUSY_MACHINE * available:
        found.append(f"all processes together used {sum(used.values()):.1f} of the machine's {available} cores")
    if used.get(OTHERS, 0.0) >= NOISE:
        found.append(f"programs that have nothing to do with it used {used[OTHERS]:.1f} cores")
    return found
