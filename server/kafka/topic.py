"""A Kafka topic as the sink sees it: its lanes, and records that wait until its partitions are known."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from server.kafka.lanes import Chunk, Lane

if TYPE_CHECKING:
    from collections.abc import Callable

    from server.core.acks import Delivery
    from server.core.record import Route

LEARNT_LIMIT_SECONDS = 300.0


@dataclass(slots=True)
class Topic:
    """One topic that a sink writes to.

    `partitions` is the number records are placed by, 0 while none is known; `visible` the number Kafka shows now.
    When they differ, new records wait until the unconfirmed ones are through, so that no key is in two partitions at
    once and order is kept.
    """

    name: str
    place: Callable[[bytes, int], int]
    partitions: int = 0
    visible: int = 0
    waiting: list[Chunk] = field(default_factory=list)
    lanes: dict[int, Lane] = field(default_factory=dict)
    _learnt_limit: int | None = None
    _learnt_at: float = 0.0

    @property
    def accepts(self) -> bool:
        """Whether records can be placed right now."""
        return self.partitions > 0 and self.partitions == self.visible

    def lane(self, route: Route) -> Lane:
        """The lane of this route."""
        partition = self.place(route.placement, self.partitions)
        lane = self.lanes.get(partition)
        if lane is None:
            lane = self.lanes[partition] = Lane(self.name, partition)
        return lane

    def follow(self, count: int) -> bool:
        """Take note of Kafka's number of partitions. Returns whether what waits can be placed now."""
        self.visible = count
        if count == 0:
            return False
        if count == self.partitions:
            return bool(self.waiting)  # it was out of sight; what waited comes after what is queued
        lanes = self.lanes.values()
        if any(lane.flight for lane in lanes):
            return False
        if count < self.partitions:
            # Deleted and created again with fewer: what is queued can't all go where it was meant to.
            displaced = [chunk for lane in lanes for chunk in lane.queue]
            self.waiting = sorted(displaced, key=lambda chunk: chunk.number) + self.waiting
            for lane in lanes:
                lane.queue.clear()  # the sink may still know the lane, and must not find anything in it
        elif any(lane.queue for lane in lanes):
            return False
        self.partitions, self.lanes = count, {}
        return True

    def place_waiting(self) -> list[tuple[Lane, Chunk]]:
        """Divide what waited among the lanes, in receive order."""
        placed = []
        waiting, self.waiting = self.waiting, []
        for chunk in waiting:
            parts: dict[Lane, tuple[list[Route], list[Delivery]]] = {}
            for route, message in zip(chunk.routes[chunk.start :], chunk.messages[chunk.start :], strict=True):
                routes, messages = parts.setdefault(self.lane(route), ([], []))
                routes.append(route)
                messages.append(message)
            chunk.arrival.open_parts += len(parts) - 1
            placed += [
                (lane, Chunk(chunk.arrival, routes, messages, chunk.number, dead_letter=chunk.dead_letter))
                for lane, (routes, messages) in parts.items()
            ]
        return placed

    @property
    def queued_records(self) -> int:
        """How many records are placed and not in flight."""
        return sum(len(chunk.messages) - chunk.start for lane in self.lanes.values() for chunk in lane.queue)

    def queued(self) -> list[Chunk]:
        """Everything that is not in flight."""
        return [*self.waiting, *(chunk for lane in self.lanes.values() for chunk in lane.queue)]

    def learn_limit(self, size: int, now: float) -> None:
        """Kafka refused a record of this size (bytes)."""
        self._learnt_limit, self._learnt_at = size - 1, now

    def limit(self, configured: int, now: float) -> int:
        """The largest record to try, in bytes; what was learnt is forgotten in time, for it may have been raised."""
        if self._learnt_limit is not None and now - self._learnt_at > LEARNT_LIMIT_SECONDS:
            self._learnt_limit = None
        return configured if self._learnt_limit is None else min(configured, self._learnt_limit)
