"""From the reader to the sink and back: budget, deduplication, acknowledgements. Runs per read, never awaits."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from server.core.acks import CANDIDATE_BYTES, AckWindow
from server.core.subscription import CopyFilter

if TYPE_CHECKING:
    from collections.abc import Sequence

    from server.core.acks import Arrival
    from server.kafka.sink import Sink
    from server.mqtt.port import Connection, Message
    from server.runtime.counters import Tally

_RESUME_AT = 0.75  # of the budget, so that reading is not switched on and off with every batch


class Intake:
    """The messages of one mapping between socket and Kafka. It outlives connections and sinks."""

    def __init__(self, tally: Tally) -> None:
        self.window: AckWindow[Message] = AckWindow()
        self.budget = 0
        self.last_message_at: float | None = None
        self.copies = CopyFilter(())
        # Received and counted, given up before Kafka had them, and still with the broker: they come again.
        self.owed = 0
        self.reads = 0
        self._tally = tally
        self._sink: Sink | None = None
        self._connection: Connection | None = None
        self._resumed = False
        self._unreleased: set[int] = set()
        self._closed = False
        self._paused = False

    # --- what it works between --------------------------------------------------------------------------------------

    def into(self, sink: Sink | None) -> None:
        """Send what is read to this sink."""
        self._sink = sink
        self._closed = False

    def attach(self, connection: Connection, unreleased: set[int]) -> None:
        """Read from this connection; `unreleased` are the QoS 2 ids answered with PUBREC and not released."""
        self._connection = connection
        self._unreleased = unreleased
        self._resumed = connection.granted.session_present
        self._paused = False
        if not self._resumed:
            self.session_lost()
        self._press()

    def detach(self, *, takeover: bool) -> None:
        """The connection is gone: what it left still goes to Kafka, and none of it can be acknowledged any more."""
        if self._connection is not None:
            withheld, self._connection = self._connection.withheld, None
            self.window.connection_lost(takeover=takeover, withheld=withheld)
            if takeover:
                self._unreleased.clear()  # the other client may have released them, and the broker used them again

    def session_lost(self) -> None:
        """The broker has no copy of anything: redeliveries of the past can't come."""
        self.window.forget_candidates()
        if self.owed:
            self._tally.dropped["session_lost"] += self.owed
            self.owed = 0

    def close(self) -> None:
        """Take nothing more: the mapping is draining."""
        self._closed = True
        self._press()

    @property
    def in_flight(self) -> int:
        """Messages received, and neither in Kafka nor given up."""
        return self.owed + (self._sink.unconfirmed if self._sink else 0)

    @property
    def held(self) -> int:
        """Bytes held for them."""
        building = self._sink.in_flight_bytes if self._sink else 0
        return self.window.held + building + CANDIDATE_BYTES * self.window.candidates

    # --- messages in ------------------------------------------------------------------------------------------------

    def received(self, messages: Sequence[Message], size: int) -> None:
        """Take messages in receive order that hold `size` bytes."""
        if self._sink is None or self._closed:
            return  # unacknowledged: they stay with the broker
        self.reads += 1
        self.last_message_at = time.time()
        arrival = self.window.arrive(messages, size, time.monotonic())
        fresh = messages
        if self.window.candidates or self.owed or self.copies or self._unreleased:
            fresh = self._sift(arrival, messages)
        else:
            self._tally.received += len(fresh)
        if fresh:
            self._sink.add(arrival, fresh)
        self.window.confirm(arrival)
        if not arrival.open_parts:  # all of it copies, redeliveries, or dropped: no confirmation will come
            self.acknowledge_due()
        self._press()

    def _sift(self, arrival: Arrival[Message], messages: Sequence[Message]) -> list[Message]:
        """The messages that have to be produced; the others are copies or redeliveries of what already is."""
        fresh: list[Message] = []
        tally = self._tally
        for message in messages:
            # Answered with PUBREC again, in its turn. Without DUP it can only be a new message of a broker that uses an
            # id again too early, as Mosquitto 2.0.11 does when its ids wrap around: then a repeat is the lesser evil.
            if message.qos == 2 and message.duplicate and message.packet_id in self._unreleased:  # noqa: PLR2004
                tally.deduplicated += 1
                continue
            if message.packet_id is not None and not message.duplicate:
                # The broker sends new messages after the replay, so nothing else of the past will come. What stayed
                # could only be taken for another message that happens to say the same.
                self.window.forget_candidates()
            redelivered = self._resumed and message.duplicate
            if redelivered and (origin := self.window.claim(message)) is not None:
                self.window.inherit(arrival, origin)
                tally.deduplicated += 1
                continue
            if self.copies and self.copies.is_extra(message.topic, message.subscription_ids):
                tally.deduplicated += 1
                continue
            if redelivered and self.owed:
                self.owed -= 1  # it was counted when it came first
            else:
                tally.received += 1
            fresh.append(message)
        return fresh

    # --- acknowledgements and back-pressure -------------------------------------------------------------------------

    def progressed(self) -> None:
        """Something may be due, and memory may be free again."""
        self.acknowledge_due()
        self._press()

    def acknowledge_due(self) -> None:
        """Acknowledge the contiguous prefix that Kafka has, in receive order."""
        connection = self._connection
        if connection is None or not connection.is_open:
            return
        due = self.window.due()
        if len(due) == 1:
            connection.acknowledge(due[0].messages)
        elif due:
            connection.acknowledge([message for arrival in due for message in arrival.messages])

    def _press(self) -> None:
        """Stop or resume reading. What is remembered for redeliveries alone never stops it, or nothing ever would."""
        connection = self._connection
        if connection is None:
            return
        if not self._paused:
            if self._closed or (self.window.held and self.held > self.budget):
                self._paused = True
                connection.pause_reading()
        elif not self._closed and (not self.window.held or self.held <= self.budget * _RESUME_AT):
            self._paused = False
            connection.resume_reading()
