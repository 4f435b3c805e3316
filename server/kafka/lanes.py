"""Records on their way to one partition: what waits, what is in flight, and how to take it back in order."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from server.core.record import size_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from server.core.acks import Arrival, Delivery
    from server.core.record import Route
    from server.kafka.batch import RecordBatch

# What a record may hold beside its value, and an envelope beside base64: an MQTT topic, escaped, has six times 65,535
# bytes at most. Only payloads that may come near the limit with it are measured; see `oversized`.
_ROOM_FOR_KEY_AND_HEADERS = 200_000
_ROOM_FOR_ENVELOPE = 400_000


@dataclass(slots=True, eq=False)
class Chunk:
    """The records of one arrival that go to one partition. Those before `start` are built or done.

    Routes and messages in two lists: a pair for each message is one more object for the garbage collector to visit.
    """

    arrival: Arrival[Any]
    routes: Sequence[Route]
    messages: Sequence[Delivery]
    number: int
    dead_letter: bool = False
    start: int = 0
    done: int = 0


@dataclass(slots=True, eq=False)
class Lane:
    """One partition of one topic. At most one batch is unconfirmed (kafka-facts.md: sequence numbers)."""

    topic: str
    partition: int
    queue: deque[Chunk] = field(default_factory=deque)
    flight: Flight | None = None
    # While a poison record is searched for: how many records a batch may have, and how many are under suspicion.
    most_records: int | None = None
    suspects: int = 0
    unnamed_failures: int = 0

    def take_back(self) -> None:
        """Put the records in flight back to the front of the queue, in their order."""
        flight, self.flight = self.flight, None
        if flight is None:
            return
        for chunk, start, _ in reversed(flight.pieces):
            chunk.start = start
            if not self.queue or self.queue[0] is not chunk:
                self.queue.appendleft(chunk)

    def suspect(self, records: int) -> None:
        """A batch of this many records failed for the sake of one of them: look for it by halving."""
        self.suspects = records if self.most_records is None else self.suspects
        self.most_records = max(1, records // 2)

    def cleared(self, records: int) -> None:
        """This many records are no longer under suspicion."""
        self.unnamed_failures = 0
        if self.most_records is not None:
            self.suspects -= records
            if self.suspects <= 0:
                self.end_search()

    def end_search(self) -> None:
        """The poison record is found, or there was none."""
        self.most_records, self.suspects, self.unnamed_failures = None, 0, 0


@dataclass(slots=True, eq=False)
class Flight:
    """A batch that Kafka has not answered yet. `pieces` are (chunk, start, stop)."""

    lane: Lane
    pieces: list[tuple[Chunk, int, int]]
    records: int
    size: int
    sent_at: float
    batch: Any
    answered: bool = False
    error: BaseException | None = None

    def first(self) -> tuple[Chunk, int]:
        """The chunk and the index of the first record."""
        chunk, start, _ = self.pieces[0]
        return chunk, start


def oversized(route: Route, payload: bytes, limit: int) -> int | None:
    """The record's size if a batch with it alone is larger than `limit` bytes, else None; nothing is made of it."""
    size = size_of(route.key, route.value_bytes(payload), route.headers)
    return size if size > limit else None


def build(
    lane: Lane, batch: RecordBatch, *, limit: int, now: float
) -> tuple[Flight | None, tuple[Chunk, int, int] | None]:
    """Fill an empty batch from the front of the lane's queue.

    Returns the flight (None if not a single record fits) and, if one stands at the front now that is larger than
    `limit` bytes, that record as (chunk, index, size).
    """
    encode = batch.encode
    timestamp = int(time.time() * 1000)  # one for all: each would ask the clock
    room = lane.most_records or -1
    pieces: list[tuple[Chunk, int, int]] = []
    records, full, poison = 0, False, None
    near = (limit - _ROOM_FOR_KEY_AND_HEADERS - _ROOM_FOR_ENVELOPE) // 4 * 3
    queue = lane.queue
    while queue and not full:
        chunk = queue[0]
        routes, messages, start = chunk.routes, chunk.messages, chunk.start
        index = start
        for index in range(start, len(messages)):
            route, message = routes[index], messages[index]
            payload = message.payload
            if len(payload) >= near and (size := oversized(route, payload, limit)) is not None:
                poison = (chunk, index, size)
                full = True
                break
            value = payload if route.envelope is None else route.value(payload)
            if records == room or encode(records, timestamp, route.key, value, route.headers) is None:
                full = True
                break
            records += 1
        else:
            index = len(messages)
        if index > start:
            pieces.append((chunk, start, index))
            chunk.start = index
        if not full:
            queue.popleft()
    if not records:
        return None, poison
    batch.filled(records)
    return Flight(lane, pieces, records, batch.size(), now, batch), poison
