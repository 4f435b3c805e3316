"""How long readers rest after a read, so that messages gather in the socket: longer while the event loop is late.

To read, to send and to acknowledge costs about the same for one message as for ten. With a thousand mappings that get
a few messages a second each, nothing gathers in 6 ms: each message costs a read and a request of its own. That is
right as long as there is CPU for it. When there is not, everything waits for its turn anyway, for hundreds of
milliseconds, and only costs the more for it: then the readers rest longer, until the loop is in time again
(docs/decisions/0021-a-late-loop-rests-longer.md, with figures).
"""

from __future__ import annotations

# So late (seconds) that more is due than there is time for.
LATE_SECONDS = 0.02
# One late sample is a start, a scrape or a neighbour, or comes behind many PINGREQs; two seconds of them are more work
# than time.
LATE_SAMPLES = 4
# Longer at once, for the backlog grows meanwhile; shorter with care, for that may bring the backlog back.
LENGTHEN = 2.25
SHORTEN = 1.04
# What a read costs with all that follows from it, and as much again: all rests together leave half the time to others.
SECONDS_PER_READER = 0.0004
LONGEST_SECONDS = 0.5
# Messages, and bytes with what keeping them costs, that share the cost of a read well enough. Whoever gets more rests
# much less, for much waits there: perhaps at a broker that keeps few in flight, and drops what is too much.
GATHERED = 4
GATHERED_BYTES = 16 * 1024
# More messages in a read than that, and even the shortest rest is longer: 0012 says why, and what it saves.
MUCH = 16
LONGER = 17 / 12


class Rests:
    """The rests of all readers of a process; `seconds` is how long one is after a read of few messages.

    `shortest` is what it begins with (seconds), 0 for no rests at all. A `fixed` one never changes.
    """

    def __init__(self, shortest: float, *, fixed: bool = False) -> None:
        self.seconds = shortest
        self._shortest = shortest
        self._fixed = fixed
        self._late = 0  # samples in a row

    def after(self, messages: int, size: int, *, full: bool) -> float:
        """How long to rest after a read of so many messages that hold `size` bytes (seconds).

        `full` says that the broker's window may be: it sends no more until the rest is over, and what comes queues.
        """
        share = min(1.0, (GATHERED / messages) ** 2, GATHERED_BYTES / size)
        longer = LONGER if messages > MUCH and not full and not self._fixed else 1.0
        return max(self._shortest * longer, self.seconds * share)

    def sampled(self, lag: float, readers: int) -> None:
        """The loop was so late (seconds) when it was looked at, with so many readers."""
        if self._fixed:
            return
        seconds = self.seconds
        self._late = self._late + 1 if lag > LATE_SECONDS else 0
        if self._late >= LATE_SAMPLES:
            seconds *= LENGTHEN
        elif not self._late:
            seconds /= SHORTEN
        self.seconds = max(self._shortest, min(seconds, SECONDS_PER_READER * readers, LONGEST_SECONDS))
