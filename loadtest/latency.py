"""End-to-end latency as an HDR histogram: microseconds from 1 to an hour, three significant digits."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from hdrh.histogram import HdrHistogram

if TYPE_CHECKING:
    from numpy.typing import NDArray

LONGEST_MICROS = 3_600_000_000
PERCENTILES = (50.0, 90.0, 99.0, 99.9, 100.0)


class Latencies:
    """A histogram of latencies; can be sent between processes and added up."""

    def __init__(self) -> None:
        self._histogram = HdrHistogram(1, LONGEST_MICROS, 3)

    @property
    def count(self) -> int:
        """How many were recorded."""
        count: int = self._histogram.get_total_count()
        return count

    def record(self, nanos: NDArray[np.int64]) -> None:
        """Record latencies in nanoseconds. What two clocks make negative counts as the shortest."""
        micros = np.clip(nanos // 1_000, 1, LONGEST_MICROS)
        for value, count in zip(*np.unique(micros, return_counts=True), strict=True):
            self._histogram.record_value(int(value), int(count))

    def add(self, other: Latencies) -> None:
        """Add another histogram's."""
        self._histogram.add(other._histogram)

    def percentile(self, percent: float) -> float:
        """The latency in milliseconds that so many percent did not exceed; 100 is the longest, 0 without any."""
        if not self.count:
            return 0.0
        micros: int = self._histogram.get_value_at_percentile(percent)
        return micros / 1e3

    def percentiles(self) -> dict[str, float]:
        """Milliseconds by name: p50, p90, p99, p99.9, max."""
        return {"max" if p == 100.0 else f"p{p:g}": self.percentile(p) for p in PERCENTILES}

    def encoded(self) -> str:
        """The whole histogram as HdrHistogram's compressed base64, to be read by its tools."""
        text: bytes = self._histogram.encode()
        return text.decode()

    def __getstate__(self) -> bytes:
        encoded: bytes = self._histogram.encode()
        return encoded

    def __setstate__(self, state: bytes) -> None:
        self._histogram = HdrHistogram.decode(state)
