"""Plain counters of one mapping and rates, collected when somebody asks."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from functools import partial

from server.runtime.histogram import Histogram

RATE_SECONDS = 5
# Seconds: from a message that is sent at once to one that waited for an outage to end.
LATENCY_BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)


class Rate:
    """Messages per second over the last RATE_SECONDS, counted by the second of the clock they came in."""

    def __init__(self) -> None:
        self._counts = [0] * (RATE_SECONDS + 1)  # of the second `_second`, and of those before it
        self._second = 0

    def note(self, now: float, messages: int) -> None:
        """Count messages at `now` (monotonic seconds)."""
        second = int(now)
        if second != self._second:
            self._turn_to(second)
        self._counts[second % len(self._counts)] += messages

    def per_second(self, now: float) -> float:
        """The rate over RATE_SECONDS and the part of the present second that is over."""
        self._turn_to(int(now))
        return sum(self._counts) / (RATE_SECONDS + now % 1)

    def _turn_to(self, second: int) -> None:
        for passed in range(max(self._second, second - len(self._counts)) + 1, second + 1):
            self._counts[passed % len(self._counts)] = 0
        self._second = second


@dataclass(slots=True)
class Tally:
    """What became of the messages since the process started. `received` counts a message once.

    Bytes received are what came from the broker, redeliveries included; bytes delivered are record batches before
    compression. `latency` is from a message's receipt to Kafka's confirmation. Connections after the first are counted
    by the reason why the one before had ended.
    """

    received: int = 0
    delivered: int = 0
    deduplicated: int = 0
    dead_lettered: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    sessions_lost: int = 0
    received_rate: Rate = field(default_factory=Rate)
    delivered_rate: Rate = field(default_factory=Rate)
    received_bytes: int = 0
    delivered_bytes: int = 0
    latency: Histogram = field(default_factory=partial(Histogram, LATENCY_BOUNDS))
    progressed_at: float | None = None  # Unix time of Kafka's last confirmation
    mqtt_reconnects: Counter[str] = field(default_factory=Counter)
    kafka_reconnects: Counter[str] = field(default_factory=Counter)
