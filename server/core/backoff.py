"""How long to wait before the next attempt: exponential, capped, with full jitter.

Full jitter (AWS Architecture Blog, "Exponential Backoff And Jitter") spreads a fleet of mappings that lost the same
broker at the same moment.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

FIRST_SECONDS = 0.5
LONGEST_SECONDS = 15.0
# Two clients with one id kick each other for ever; give an operator's rollout time to settle.
AFTER_TAKEOVER_SECONDS = 10.0


@dataclass(slots=True)
class Backoff:
    """Waiting times of one party; `random` gives numbers in [0, 1)."""

    random: Callable[[], float]
    attempts: int = 0

    def next_delay(self) -> float:
        """Seconds to wait before the next attempt: from 0.5 s up to a ceiling that doubles from 1 s to 15 s."""
        self.attempts += 1
        ceiling = min(LONGEST_SECONDS, FIRST_SECONDS * 2.0 ** min(self.attempts, 10))
        return FIRST_SECONDS + self.random() * (ceiling - FIRST_SECONDS)

    def after_takeover(self) -> float:
        """Seconds to wait after another client took the session over."""
        return max(AFTER_TAKEOVER_SECONDS, self.next_delay())

    def reset(self) -> None:
        """The attempt succeeded."""
        self.attempts = 0
