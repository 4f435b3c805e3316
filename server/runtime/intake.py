"""From the reader to the sink and back: budget, deduplication, acknowledgements. Runs per read, never awaits."""

from __future__ import annotations

import functools
import time
from typing import TYPE_CHECKING

from server.core.acks import CANDIDATE_BYTES, AckWindow
from server.core.numbering import Numbering
from server.core.pace import Pace
from server.core.rests import Rests
from server.core.subscription import CopyFilter
from server.mqtt.port import MESSAGE_OVERHEAD_BYTES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from server.core.acks import Arrival
    from server.kafka.sink import Sink, Unconfirmed
    from server.mqtt.port import Connection, Message, SessionRequest
    from server.runtime.counters import Tally

NO_RESTS = Rests(0.0)
_RESUME_AT = 0.75  # of the budget, so that reading is not switched on and off with every batch


class Intake:
    """The messages of one mapping between socket and Kafka. It outlives connections and sinks."""

    def __init__(self, tally: Tally, *, rests: Rests = NO_RESTS) -> None:
        self.window: AckWindow[Message] = AckWindow()
        self.budget = 0
        self.last_message_at: float | None = None
        self.copies = CopyFilter(())
        # Received and counted, given up before Kafka had them, and still with the broker: they come again.
        self.owed = 0
        self.reads = 0
        self._tally = tally
        self._rests = rests
        self._pace = Pace(rests, 1)
        self._resting = False
        self._unacknowledged = 0
        self._read_messages = self._read_bytes = 0  # so far, of a read that comes in parts
        self._sink: Sink | None = None
        self._connection: Connection | None = None
        self._numbering = Numbering()
        self._resumed = False
        self._client_id = ""
        self._unreleased: set[int] = set()
        self._closed = False
        self._paused = False
        self._receiving = 0

    # --- what it works between --------------------------------------------------------------------------------------

    def into(self, sink: Sink | None) -> None:
        """Send what is read to this sink."""
        self._sink = sink
        self._closed = False

    def attach(self, connection: Connection, request: SessionRequest) -> None:
        """Read from this connection of the session that was asked for."""
        client_id = request.client_id
        if client_id != self._client_id:  # packet ids mean nothing in another session
            self._client_id = client_id
            self._numbering = Numbering()
            self.window.forget_candidates()
        self._connection = connection
        self._unreleased = request.unreleased
        self._pace = Pace(self._rests, request.receive_maximum)
        self._resting = False
        self._unacknowledged = self._read_messages = self._read_bytes = 0
        self._resumed = connection.granted.session_present
        self._paused = False
        self._numbering.connected(resumed=self._resumed)
        if not self._resumed:
            self.session_lost()
        self._press()

    def detach(self, *, takeover: bool) -> None:
        """The connection is gone: what it left still goes to Kafka, and none of it can be acknowledged any more."""
        if self._connection is not None:
            withheld, self._connection = self._connection.withheld, None
            self._receiving = 0
            self.window.connection_lost(takeover=takeover, withheld=withheld)
            self._numbering.lost(self.window.candidate_ids)
            if takeover:
                self._unreleased.clear()  # the other client may have released them, and the broker used them again

    def session_lost(self) -> None:
        """The broker has no copy of anything: redeliveries of the past can't come."""
        self.window.session_lost()
        if self.owed:
            self._tally.dropped["session_lost"] += self.owed
            self.owed = 0

    def close(self) -> None:
        """Take nothing more: the mapping is draining."""
        self._closed = True
        self._press()

    def acknowledge_confirmed(self, unconfirmed: Sequence[Unconfirmed]) -> None:
        """Acknowledge all that comes before the first message Kafka has not confirmed; nothing more will be."""
        self.acknowledge_due()
        connection = self._connection
        if connection is not None and connection.is_open:
            connection.acknowledge(self.window.confirmed_prefix([message for _, message in unconfirmed]))

    def give_up(self, unconfirmed: Sequence[Unconfirmed]) -> int:
        """Account for what Kafka had not confirmed: it comes again, or it is lost. Returns how many are lost."""
        lost = sum(1 for arrival, message in unconfirmed if message.qos == 0 or not arrival.kept)
        self.into(None)
        self.window.given_up(unconfirmed)
        self.owed += len(unconfirmed) - lost
        if lost:
            self._tally.dropped["shutdown"] += lost
        return lost

    @property
    def in_flight(self) -> int:
        """Messages received, and neither in Kafka nor given up."""
        return self.owed + (self._sink.unconfirmed if self._sink else 0)

    @property
    def held(self) -> int:
        """Bytes held for them."""
        building = self._sink.in_flight_bytes if self._sink else 0
        return self.window.held + self._receiving + building + CANDIDATE_BYTES * self.window.candidates

    # --- messages in ------------------------------------------------------------------------------------------------

    def received(self, messages: Sequence[Message], size: int) -> None:
        """Take messages in receive order that hold `size` bytes; `all_received` follows the last ones of a read."""
        self._receiving = 0
        if self._sink is None or self._closed:
            self.discarded(messages, durable=bool(self._client_id))
            return
        self.reads += 1
        tally, now = self._tally, time.monotonic()
        already = tally.received
        tally.received_bytes += size - MESSAGE_OVERHEAD_BYTES * len(messages)
        self.last_message_at = time.time()
        arrival = self.window.arrive(messages, size, now, kept=bool(self._client_id))
        self._unacknowledged += len(messages)
        self._read_messages += len(messages)
        self._read_bytes += size
        fresh = messages
        if self._numbering.replaying or self.window.candidates or self.owed or self.copies or self._unreleased:
            fresh = self._sift(arrival, messages)
        else:
            tally.received += len(fresh)
            self._numbering.arrived(messages)
        tally.received_rate.note(now, tally.received - already)
        if fresh:
            self._sink.add(arrival, fresh)
        self.window.confirm(arrival)
        if not arrival.open_parts:  # all of it copies, redeliveries, or dropped: no confirmation will come
            self.acknowledge_due()
        self._press()

    def all_received(self) -> None:
        """A read is taken in: see whether to rest before the next."""
        messages, size = self._read_messages, self._read_bytes
        if not messages:
            return
        self._read_messages = self._read_bytes = 0
        in_flight = self._unacknowledged + len(self._unreleased)  # PUBREC does not make room in the broker's window
        rest = self._pace.read(messages, size, in_flight, time.monotonic())
        if rest and self._connection is not None:
            self._resting = True
            self._connection.rest(rest, self._rested)

    def discarded(self, messages: Sequence[Message], *, durable: bool) -> None:
        """These were not taken, nor acknowledged: they stay with the broker, or are lost if it has no copy."""
        lost = sum(1 for message in messages if message.qos == 0) if durable else len(messages)
        if lost:
            self._tally.received += lost
            self._tally.received_rate.note(time.monotonic(), lost)
            self._tally.dropped["shutdown"] += lost

    def receiving(self, size: int) -> None:
        """So many bytes of a large message that is on its way are held already."""
        self._receiving = size
        self._press()

    def _sift(self, arrival: Arrival[Message], messages: Sequence[Message]) -> list[Message]:
        """The messages that have to be produced; the others are copies or redeliveries of what already is."""
        fresh: list[Message] = []
        tally = self._tally
        for message in messages:
            if message.packet_id is not None:
                self._number(message.packet_id, message)
            # Answered with PUBREC again, in its turn. Without DUP it can only be a new message of a broker that uses an
            # id again too early, as Mosquitto 2.0.11 does when its ids wrap around: then a repeat is the lesser evil.
            if message.qos == 2 and message.duplicate and message.packet_id in self._unreleased:  # noqa: PLR2004
                tally.deduplicated += 1
                continue
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

    def _number(self, packet_id: int, message: Message) -> None:
        """Follow the packet ids, and forget those of the past that prove nothing (any more)."""
        numbering = self._numbering
        if numbering.opening and not numbering.opened_by(packet_id, duplicate=message.duplicate):
            self.window.forget_candidates()
            self._unreleased.clear()
        if message.duplicate:
            numbering.redelivered(packet_id)
        else:
            # The broker sends new messages after the replay, so nothing else of the past will come. What stayed
            # could only be taken for another message that happens to say the same.
            self.window.forget_candidates()
            numbering.arrived((message,))
            self._forget_owed()

    def _forget_owed(self) -> None:
        """The replay is over: what was handed back and did not come again is not with the broker any more."""
        if self.owed:
            self._tally.dropped["not_redelivered"] += self.owed
            self.owed = 0

    # --- acknowledgements and back-pressure -------------------------------------------------------------------------

    def progressed(self) -> None:
        """Something may be due, and memory may be free again.

        While the reader rests, acknowledgements wait for it too. Mosquitto leaves Nagle's algorithm on: what comes
        next stays with it until TCP has acknowledged what came before, which happens as we write. Written earlier, they
        would fetch a part, and the rest a whole rest later.
        """
        if not self._resting:
            self.acknowledge_due()
        self._press()

    def _rested(self) -> None:
        self._resting = False
        self.progressed()

    def acknowledge_due(self) -> None:
        """Acknowledge the contiguous prefix that Kafka has, in receive order."""
        connection = self._connection
        if connection is None or not connection.is_open:
            return
        due = self.window.due()
        if not due:
            return
        messages = due[0].messages if len(due) == 1 else [each for arrival in due for each in arrival.messages]
        connection.acknowledge(messages)
        self._unacknowledged -= len(messages)
        if self._numbering.acknowledged(len(messages)):
            withheld = connection.withheld
            mark = self._numbering.mark(withheld[0][0] if withheld else self.window.oldest_packet_id)
            connection.when_processed(functools.partial(self._numbering.settled, mark))

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
