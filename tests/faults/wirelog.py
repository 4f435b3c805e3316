"""The wire log made sense of: which PUBLISH each acknowledgement answers, and what a broken connection left."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tests.faults.history import Ack, Delivery, Ended

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from tests.faults.history import Fault, MessageId, WireEvent

# What was passed on to the broker so shortly before the end may lie unread in its socket when that is torn down.
UNREAD_SECONDS = 1.0
_KINDS = {1: "PUBACK", 2: "PUBREC"}


@dataclass(slots=True)
class Exchange:
    """A PUBLISH, the `number`th of all, and its acknowledgement, if it got one on its connection.

    `overtook` says that an earlier PUBLISH of the same QoS was not acknowledged yet.
    """

    delivery: Delivery
    number: int
    ack: Ack | None = None
    overtook: bool = False


@dataclass(slots=True)
class WireLog:
    """All exchanges in the order of their PUBLISHes, and the acknowledgements that answer none."""

    exchanges: list[Exchange] = field(default_factory=list)
    by_connection: defaultdict[int, list[Exchange]] = field(default_factory=lambda: defaultdict(list))
    strays: list[tuple[Ack, Exchange | None]] = field(default_factory=list)
    ended: list[Ended] = field(default_factory=list)

    @classmethod
    def of(cls, events: Iterable[WireEvent]) -> WireLog:
        """Match what was recorded. A stray comes with the PUBLISH of an earlier connection that it would answer."""
        log = cls()
        waiting: dict[int, dict[tuple[str, int], Exchange]] = defaultdict(dict)
        for event in events:
            match event:
                case Delivery():
                    exchange = Exchange(event, len(log.exchanges))
                    log.exchanges.append(exchange)
                    log.by_connection[event.connection].append(exchange)
                    waiting[event.connection][_KINDS[event.qos], event.packet_id] = exchange
                case Ack():
                    # Also after the end: the service may write what it has until it hears of that.
                    found = waiting[event.connection].pop((event.kind, event.packet_id), None)
                    if found is None:
                        log.strays.append((event, _elsewhere(waiting, event)))
                        continue
                    found.ack = event
                    left = (each for (kind, _), each in waiting[event.connection].items() if kind == event.kind)
                    found.overtook = next(left, found).number < found.number
                case Ended():
                    log.ended.append(event)
        return log

    def ended_between(self, mapping: str, fault: Fault, following: float) -> list[Ended]:
        """The connections of a mapping that ended from the beginning of a fault to that of the following one."""
        return [each for each in self.ended if each.mapping == mapping and fault.begin <= each.at < following]

    def left_by(self, ended: Ended, fault: Fault) -> list[Exchange]:
        """What the broker may not know to be acknowledged when this connection ended during or after the fault."""
        read_until = (min(ended.at, fault.begin) if fault.cost.unread else ended.at) - UNREAD_SECONDS
        return [
            each
            for each in self.by_connection[ended.connection]
            if each.ack is None or each.ack.relayed_at is None or each.ack.relayed_at > read_until
        ]

    def most_in_flight(self, mapping: str, since: float, until: float) -> int:
        """The most messages of a mapping that were delivered and not acknowledged, from `since` to `until`."""
        steps: list[tuple[float, int]] = []
        ends = {each.connection: each.at for each in self.ended}
        for each in self.exchanges:
            if each.delivery.mapping != mapping or each.delivery.at > until:
                continue
            gone = each.ack.at if each.ack else ends.get(each.delivery.connection, float("inf"))
            if gone >= since:
                steps += [(each.delivery.at, 1), (gone, -1)]
        most = now = 0
        for _, step in sorted(steps, key=lambda item: (item[0], -item[1])):
            now += step
            most = max(most, now)
        return most

    def first_deliveries(self, mapping: str) -> dict[MessageId, float]:
        """When the service was first sent each message."""
        first: dict[MessageId, float] = {}
        for each in self.exchanges:
            if each.delivery.mapping == mapping:
                first.setdefault(each.delivery.message, each.delivery.at)
        return first


def _elsewhere(waiting: Mapping[int, Mapping[tuple[str, int], Exchange]], ack: Ack) -> Exchange | None:
    """What this acknowledgement would answer on another connection of its mapping."""
    for exchanges in waiting.values():
        found = exchanges.get((ack.kind, ack.packet_id))
        if found is not None and found.delivery.mapping == ack.mapping:
            return found
    return None
