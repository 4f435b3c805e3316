"""What is measured: of one forwarder, by one workload."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from loadtest.latency import Latencies
    from loadtest.processes import Sample
    from loadtest.reader import Interval
    from loadtest.verdict import Verdict

FORWARDER = "forwarder"


class MeasurementError(Exception):
    """There is no figure: the forwarder does not start, forwards nothing, or ended."""


@dataclass(frozen=True, slots=True)
class Measurement:
    """What was measured.

    `seconds`: from the first publish (live) or from when the broker may send (drain) to Kafka's last append;
    `first_seconds` to its first one. `latencies`: in a drain, where messages are as old as their session, from when the
    broker may send.
    `watched_seconds`: for how long CPU was counted; `cpu`: CPU seconds by process, the forwarder's under "forwarder".
    `peak`: the forwarder's bytes. `unacknowledged`: what its session still held, None if nobody looked.
    """

    forwarder: str
    mode: str
    seconds: float
    first_seconds: float
    verdict: Verdict
    latencies: Latencies
    watched_seconds: float
    cpu: dict[str, float]
    peak: int
    samples: Sequence[Sample]
    intervals: dict[int, Interval]
    began_ns: int
    unacknowledged: int | None = None

    @property
    def arrived(self) -> int:
        """How many different messages reached Kafka."""
        return self.verdict.published - self.verdict.lost

    @property
    def rate(self) -> float:
        """Messages a second that reached Kafka."""
        return self.arrived / self.seconds

    @property
    def cpu_micros(self) -> float:
        """The forwarder's CPU for a message, in microseconds."""
        return self.cpu[FORWARDER] / max(1, self.arrived) * 1e6

    @property
    def cores(self) -> float:
        """The forwarder's CPU, in cores."""
        return self.cpu[FORWARDER] / self.watched_seconds
