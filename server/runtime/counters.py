"""Plain counters of one mapping, collected when somebody asks; and rates from samples of them."""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, field
from functools import partial

from server.runtime.histogram import Histogram

RATE_SECONDS = 5.0
# Seconds: from a message that is sent at once to one that waited for an outage to end.
LATENCY_BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)


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
    received_bytes: int = 0
    delivered_bytes: int = 0
    latency: Histogram = field(default_factory=partial(Histogram, LATENCY_BOUNDS))
    progressed_at: float | None = None  # Unix time of Kafka's last confirmation
    mqtt_reconnects: Counter[str] = field(default_factory=Counter)
    kafka_reconnects: Counter[str] = field(default_factory=Counter)


class Rates:
    """Messages per second over the last RATE_SECONDS, from samples taken about once a second."""

    def __init__(self) -> None:
        self._samples: deque[tuple[float, int, int]] = deque()

    def sample(self, now: float, tally: Tally) -> None:
        """Take a sample at `now` (monotonic seconds)."""
        self._samples.append((now, tally.received, tally.delivered))
        while len(self._samples) > 1 and now - self._samples[0][0] > RATE_SECONDS:
            self._samples.popleft()

    def per_second(self) -> tuple[float, float]:
        """Received and delivered per second."""
        if not self._samples:
            return 0.0, 0.0
        first, last = self._samples[0], self._samples[-1]
        seconds = last[0] - first[0]
        if seconds <= 0:
            return 0.0, 0.0
        return (last[1] - first[1]) / seconds, (last[2] - first[2]) / seconds
