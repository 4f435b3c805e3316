"""When to rest from reading, so that messages gather in the socket instead of costing a Kafka request each.

A produce request costs some 300 µs of CPU whatever it carries, and so does waking up for a read: most of it is the
kernel's, for waking a process that slept. So what is read is sent at once, and then the reader rests: what comes
meanwhile is read, and sent, together. A message waits for half a rest on average, and one that comes after a quiet
time does not wait at all.

But a rest is time that a broker with a small window waits for its acknowledgements in (HiveMQ keeps 50 messages in
flight, Mosquitto 20 by default): one window a rest is all that would come. That shows: after read upon read nearly as
many messages are in flight as at the most. Then it is tried whether more comes without resting, and if so there are no
rests while the window keeps filling up. A trial that brought nothing makes the next one rarer: devices that send in
step look alike.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from server.core.rests import Rests

# Messages that hold so much (bytes, with what keeping them costs) are worth a request of their own: some 32 KiB of 200
# byte payloads on the wire. Resting after each would limit the rate to a socket's buffer a rest.
LARGE_READ = 96 * 1024
# A read that leaves so much of the most in flight looks like a full window: at QoS 2 a message or two are on their way.
FULL = 7 / 8
# So many such reads are worth a trial; each trial in vain makes it more.
FULL_READS = 8
MORE_FULL_READS = 4
MOST_FULL_READS = 2_048
# How long it takes to see what a rate is (seconds), and how much more must come without rests.
TRIAL_SECONDS = 0.05
GAIN = 1.25


class Pace:
    """The pace of one connection, whose reader takes these rests."""

    def __init__(self, rests: Rests, receive_maximum: int) -> None:
        self._rests = rests
        self._receive_maximum = receive_maximum
        self._most = 0  # in flight after any read
        self._full = 0  # reads that left as many in flight
        self._full_enough = FULL_READS
        self._since = 0.0
        self._messages = 0
        self._rate: float | None = None  # with rests, while none are taken

    def read(self, messages: int, size: int, in_flight: int, now: float) -> float:
        """So many messages that hold `size` bytes were read at `now` (seconds); returns how long to rest (seconds).

        `in_flight` messages are not acknowledged, these included.
        """
        full = in_flight >= FULL * self._most
        rest = self._rests.after(messages, size, full=full)
        if not rest or in_flight >= self._receive_maximum:
            return 0.0
        self._messages += messages
        if in_flight > self._most:
            self._most = in_flight
            self._measure(now)
        elif full:
            self._full += 1
        seconds = now - self._since
        if self._rate is not None:
            return self._without_rests(self._rate, seconds, rest, now)
        if size >= LARGE_READ:
            return 0.0
        if self._full < self._full_enough or seconds < TRIAL_SECONDS:
            return rest
        self._rate = self._messages / seconds
        self._measure(now)
        return 0.0

    def _without_rests(self, rate_with_rests: float, seconds: float, rest: float, now: float) -> float:
        """Whether it is still worth it, or the rest that is due again."""
        if seconds < TRIAL_SECONDS:
            return 0.0
        worth = self._full > 0 and self._messages >= GAIN * rate_with_rests * seconds
        self._measure(now)
        if worth:
            self._full_enough = FULL_READS
            return 0.0
        self._rate = None
        self._full_enough = min(MOST_FULL_READS, self._full_enough * MORE_FULL_READS)
        return rest

    def _measure(self, now: float) -> None:
        """Begin to measure."""
        self._since, self._messages, self._full = now, 0, 0
