"""The arithmetic of a measurement: from what Kafka and the kernel recorded to what is printed."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


class MeasurementError(Exception):
    """The figures would mean nothing: messages are missing or out of order, or the time was too short."""


@dataclass(frozen=True, slots=True)
class Drain:
    """One drain of a session by one forwarder: `seconds` from when the broker may send to Kafka's last append."""

    messages: int
    seconds: float
    cpu_seconds: float
    peak_bytes: int
    repeats: int
    unacknowledged: int

    @property
    def rate(self) -> float:
        """Messages a second."""
        return self.messages / self.seconds

    @property
    def cpu_micros(self) -> float:
        """CPU a message, in microseconds."""
        return self.cpu_seconds / self.messages * 1e6


@dataclass(frozen=True, slots=True)
class Summary:
    """The medians of some drains."""

    messages: int
    rate: float
    cpu_micros: float
    peak_mb: float
    repeats: int
    unacknowledged: int


def seconds_until_last(stamps: Sequence[int], started_at: float) -> float:
    """The seconds from `started_at` (Unix time) to the last append; `stamps` are Kafka's, in milliseconds.

    Not from the first append: a forwarder that reads everything before it writes anything would be flattered.
    """
    if not stamps:
        raise MeasurementError("there are no records")
    seconds = max(stamps) / 1000 - started_at
    if seconds <= 0:
        raise MeasurementError("Kafka's clock is not this machine's: it wrote the last record before the start")
    return seconds


def check_complete(records: Iterable[tuple[bytes | None, int]], messages: int) -> int:
    """Check that the numbers 0 to `messages` - 1 are all there, and in order per key; returns how many are repeats.

    `records` are (key, number) in the order of their offsets.
    """
    seen: Counter[int] = Counter()
    last: dict[bytes | None, int] = {}
    for key, number in records:
        if not seen[number]:
            if number < last.get(key, -1):
                raise MeasurementError(f"{number} came after {last[key]} on {key!r}")
            last[key] = number
        seen[number] += 1
    missing = [number for number in range(messages) if number not in seen]
    if missing:
        raise MeasurementError(f"{len(missing)} of {messages} messages are missing, the first is {missing[0]}")
    return seen.total() - len(seen)


def summarize(drains: Sequence[Drain]) -> Summary:
    """The medians of the rates and costs; the peak, the repeats and the unacknowledged are the worst."""
    return Summary(
        messages=drains[0].messages,
        rate=median(drain.rate for drain in drains),
        cpu_micros=median(drain.cpu_micros for drain in drains),
        peak_mb=max(drain.peak_bytes for drain in drains) / 1e6,
        repeats=max(drain.repeats for drain in drains),
        unacknowledged=max(drain.unacknowledged for drain in drains),
    )
