"""The records a sink has taken and not sent: placed in lanes, or waiting until their topic's partitions are known."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from server.core.record import Route, compile_record, dead_letter_headers
from server.core.template import NotMappableError
from server.kafka.lanes import Chunk
from server.kafka.topic import Topic

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from server.core.acks import Arrival, Delivery
    from server.core.lifecycle import Reason
    from server.core.mapping import Mapping
    from server.kafka.lanes import Flight, Lane

MAX_ROUTES = 10_000


class Outbox:
    """One mapping's records on their way to `main`, and its dead letters on theirs.

    `ready` are the lanes with something to send and nothing in flight, `queued` counts the records in lanes.
    """

    def __init__(self, mapping: Mapping, place: Callable[[bytes, int], int]) -> None:
        self._mapping = mapping
        self._place = place
        self._shape = compile_record(mapping)
        self._routes: dict[str, tuple[Route, Lane]] = {}
        self._number = 0
        self.main = Topic(mapping.kafka.topic, place)
        self.topics = {self.main.name: self.main}
        self.ready: dict[Lane, None] = {}
        self.queued = 0

    def add(self, arrival: Arrival[Any], messages: Sequence[Delivery]) -> list[tuple[Delivery, str]]:
        """Take messages of one arrival, in receive order, and open a part of it per lane.

        Returns the messages that can't become records, with why.
        """
        self._number += 1
        routes = self._routes
        groups: dict[Lane | None, tuple[list[Route], list[Delivery]]] = {}
        lane: Lane | None
        unmappable: list[tuple[Delivery, str]] = []
        for message in messages:
            known = routes.get(message.topic)
            if known is not None:
                route, lane = known
            else:
                try:
                    route, lane = self._route(message.topic)
                except NotMappableError as error:
                    unmappable.append((message, str(error)))
                    continue
            group = groups.get(lane)
            if group is None:
                group = groups[lane] = ([], [])
            group[0].append(route)
            group[1].append(message)
        for target, (of_lane, to_send) in groups.items():
            arrival.open_parts += 1
            chunk = Chunk(arrival, of_lane, to_send, self._number)
            if target is None:
                self.main.waiting.append(chunk)
            else:
                self._enqueue(target, chunk)
        return unmappable

    def add_dead_letter(self, arrival: Arrival[Any], message: Delivery, key: bytes | None, reason: Reason) -> None:
        """Take a message's original bytes as a dead letter; opens a part of its arrival."""
        name = self._mapping.dead_letter_topic
        if name is None:
            raise RuntimeError(f"mapping {self._mapping.name!r} has no dead letter topic")
        headers = dead_letter_headers(
            message, mapping=self._mapping.name, reason=reason.code, detail=reason.detail, at=datetime.now(UTC)
        )
        route = Route(topic=message.topic, key=key, placement=message.topic.encode(), headers=headers, envelope=None)
        topic = self.topics.setdefault(name, Topic(name, self._place))
        self._number += 1
        arrival.open_parts += 1
        chunk = Chunk(arrival, [route], [message], self._number, dead_letter=True)
        if topic.accepts:
            self._enqueue(topic.lane(route), chunk)
        else:
            topic.waiting.append(chunk)

    def follow(self, partitions: Callable[[str], int]) -> list[Topic]:
        """Take over what Kafka shows of each topic, place what waited for it, and name the topics it does not show."""
        missing: list[Topic] = []
        for topic in self.topics.values():
            if topic.follow(partitions(topic.name)):
                for lane, chunk in topic.place_waiting():
                    self._enqueue(lane, chunk)
                self.queued = sum(each.queued_records for each in self.topics.values())
                self._routes.clear()
            elif topic is self.main and not topic.accepts:
                self._routes.clear()
            if not topic.visible:
                missing.append(topic)
        return missing

    def sent(self, flight: Flight) -> None:
        """These records left their lane's queue."""
        self.queued -= flight.records

    def landed(self, lane: Lane) -> None:
        """The lane has nothing in flight any more."""
        if lane.queue:
            self.ready[lane] = None

    def take_back(self, flight: Flight) -> None:
        """Put what was in flight back to the front of its lane."""
        flight.lane.take_back()
        self.queued += flight.records
        self.ready[flight.lane] = None

    def skip(self, lane: Lane) -> None:
        """Take the record at the front of the lane out of it."""
        chunk = lane.queue[0]
        chunk.start += 1
        self.queued -= 1
        if chunk.start == len(chunk.messages):
            lane.queue.popleft()

    def unsent(self) -> list[tuple[Arrival[Any], Delivery]]:
        """Every message in it, with its arrival."""
        chunks = [chunk for topic in self.topics.values() for chunk in topic.queued()]
        return [(chunk.arrival, message) for chunk in chunks for message in chunk.messages[chunk.start :]]

    def _route(self, mqtt_topic: str) -> tuple[Route, Lane | None]:
        """The route of an MQTT topic, and its lane if its partition is known."""
        route = self._shape.route(mqtt_topic)
        if not self.main.accepts:
            return route, None
        if len(self._routes) >= MAX_ROUTES:
            self._routes.clear()
        lane = self.main.lane(route)
        self._routes[mqtt_topic] = (route, lane)
        return route, lane

    def _enqueue(self, lane: Lane, chunk: Chunk) -> None:
        lane.queue.append(chunk)
        self.queued += len(chunk.messages)
        if lane.flight is None:
            self.ready[lane] = None
