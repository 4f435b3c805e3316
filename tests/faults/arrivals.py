"""Invariants 1 to 4: what was promised is there, no more often than allowed, and in order."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.faults.history import Violation

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from tests.faults.history import Fault, History, MessageId, Publication, Stored
    from tests.faults.wirelog import Exchange, WireLog

_SHOWN = 3
# LogAppendTime is in whole milliseconds, rounded down.
_ROUNDING = 0.001
# So long the service may go on writing to a connection that is gone, without having heard of it.
_UNHEARD_SECONDS = 0.5


def check_arrivals(history: History, wire: WireLog) -> Iterator[Violation]:
    """Check every mapping by itself."""
    published = {each.id: each for each in history.publications}
    stored: defaultdict[str, defaultdict[MessageId, list[Stored]]] = defaultdict(lambda: defaultdict(list))
    for record in history.records:
        known = published.get(record.id)
        if known is None or known.uuid != record.uuid:
            yield Violation(2, f"mapping {record.mapping}: {record} was never published")
            continue
        stored[record.mapping][record.id].append(record)
    for mapping in history.mappings:
        copies = stored[mapping]
        for records in copies.values():
            records.sort(key=lambda each: (each.at, each.partition, each.offset))
        arrivals = _Arrivals(history, wire, mapping, copies, published)
        yield from arrivals.lost()
        yield from arrivals.repeated()
        yield from arrivals.disordered()


def excused_exchange(history: History, exchange: Exchange) -> bool:
    """Whether a message that was acknowledged may be missing."""
    delivery, ack = exchange.delivery, exchange.ack
    until = float("inf") if ack is None else ack.at
    return any(each.of == "in flight" and each.covers(delivery.mapping, delivery.at, until) for each in history.excuses)


@dataclass(slots=True)
class _Arrivals:
    """What arrived of one mapping: the copies of each message in the order of their arrival."""

    history: History
    wire: WireLog
    mapping: str
    copies: Mapping[MessageId, list[Stored]]
    published: Mapping[MessageId, Publication]

    # --- 1 and 2: nothing is lost -----------------------------------------------------------------------------------

    def lost(self) -> Iterator[Violation]:
        """Find what was acknowledged, or accepted by the broker, and is not in Kafka."""
        history = self.history
        excused: set[MessageId] = set()
        acknowledged: list[tuple[MessageId, float]] = []
        for exchange in self.wire.exchanges:
            ack = exchange.ack
            if ack is None or ack.mapping != self.mapping or exchange.delivery.message in self.copies:
                continue
            if excused_exchange(history, exchange):
                excused.add(exchange.delivery.message)
            else:
                acknowledged.append((exchange.delivery.message, ack.at))
        by_rule = history.dropped_by_rule.get(self.mapping, 0)
        if len(acknowledged) > by_rule:
            allowed = f" ({by_rule} may be missing)" if by_rule else ""
            shown = _listed(f"{_named(message)}, acknowledged at {history.clock(at)}" for message, at in acknowledged)
            yield self._violation(
                1, f"{len(acknowledged)} messages were acknowledged and are not in Kafka{allowed}: {shown}"
            )
        excused |= {message for message, _ in acknowledged}
        lost = [
            (each.id, at)
            for each in history.publications
            if (at := each.accepted_at) is not None
            and each.id not in self.copies
            and each.id not in excused
            and not any(each.of == "accepted" and each.covers(self.mapping, at, at) for each in history.excuses)
        ]
        if lost:
            shown = _listed(
                f"{_named(message)}, accepted at {history.clock(at)} ({self._during(at)})" for message, at in lost
            )
            yield self._violation(2, f"{len(lost)} messages that the broker accepted are not in Kafka: {shown}")

    # --- 3: repeats -------------------------------------------------------------------------------------------------

    def repeated(self) -> Iterator[Violation]:
        """Find repeats that no fault explains, each laid at the latest fault before it."""
        history = self.history
        faults = sorted(history.faults, key=lambda each: each.begin)
        repeats: defaultdict[int, list[Stored]] = defaultdict(list)
        for message, records in self.copies.items():
            for extra in records[max(1, self.published[message].attempts) :]:
                begun = [index for index, each in enumerate(faults) if each.begin <= extra.at + _ROUNDING]
                repeats[begun[-1] if begun else -1].append(extra)
        for index, extras in sorted(repeats.items()):
            shown = _listed(f"{_named(each.id)} at {history.clock(each.at)}" for each in extras)
            if index < 0:
                yield self._violation(3, f"{len(extras)} repeats before any fault: {shown}")
                continue
            fault, following = faults[index], faults[index + 1].begin if index + 1 < len(faults) else float("inf")
            allowed = self._allowed(fault, following)
            if len(extras) > allowed:
                yield self._violation(
                    3,
                    f"{len(extras)} repeats after {fault.name!r} (from {history.clock(fault.begin)}), which may cost "
                    f"{allowed} (repeats: {fault.cost.repeats}): {shown}",
                )
            if fault.cost.attaches and self.mapping.startswith("5/"):
                yield from self._not_attached(fault, following, extras)

    def _allowed(self, fault: Fault, following: float) -> int:
        if fault.cost.repeats == "none":
            return 0
        allowed = sum(
            len(self.wire.left_by(each, fault)) for each in self.wire.ended_between(self.mapping, fault, following)
        )
        if fault.cost.repeats == "flight":
            allowed += self.wire.most_in_flight(self.mapping, fault.begin, min(following, fault.end + 1.0))
        return allowed

    def _not_attached(self, fault: Fault, following: float, extras: list[Stored]) -> Iterator[Violation]:
        """What Kafka had only after the connection was gone was never acknowledged, so its redelivery attaches."""
        waited = {
            exchange.delivery.message
            for ended in self.wire.ended_between(self.mapping, fault, following)
            for exchange in self.wire.left_by(ended, fault)
            if (copies := self.copies.get(exchange.delivery.message)) and copies[0].at > ended.at + _UNHEARD_SECONDS
        }
        wrong = [extra for extra in extras if extra.id in waited]
        if wrong:
            shown = _listed(f"{_named(each.id)} at {self.history.clock(each.at)}" for each in wrong)
            yield self._violation(
                3,
                f"{len(wrong)} messages that waited for Kafka when {fault.name!r} broke the connection were produced "
                f"again instead of being attached: {shown}",
            )

    # --- 4: order ---------------------------------------------------------------------------------------------------

    def disordered(self) -> Iterator[Violation]:
        """Compare first copies: by offset inside a partition, by time between partitions and incarnations."""
        latest: dict[str, Stored] = {}
        furthest: dict[tuple[str, int, int], Stored] = {}
        swapped: list[tuple[Stored, Stored]] = []
        for record in sorted((records[0] for records in self.copies.values()), key=lambda each: each.id):
            place = record.topic, record.partition, record.incarnation
            before = furthest.get(place)
            if before is None or before.offset < record.offset:
                furthest[place] = record
            else:
                swapped.append((before, record))
            before = latest.get(record.topic)
            if before is None or before.at <= record.at:
                latest[record.topic] = record
            elif (before.topic, before.partition, before.incarnation) != place:
                swapped.append((before, record))
        if swapped:
            topics = Counter(record.topic for _, record in swapped)
            shown = _listed(
                f"{_placed(later)} came before {_placed(record)} at {self.history.clock(record.at)} "
                f"({self._during(record.at)})"
                for later, record in swapped
            )
            yield self._violation(4, f"order is broken on {len(topics)} topics: {shown}")

    # --- words ------------------------------------------------------------------------------------------------------

    def _violation(self, invariant: int, what: str) -> Violation:
        return Violation(invariant, f"mapping {self.mapping}: {what}")

    def _during(self, at: float) -> str:
        fault = self.history.fault_at(at)
        if fault is None:
            return "before any fault"
        return f"{'during' if at <= fault.end else 'after'} {fault.name!r}"


def _named(message: MessageId) -> str:
    return f"{message[0]} #{message[1]}"


def _placed(record: Stored) -> str:
    return f"{_named(record.id)} (partition {record.partition}, offset {record.offset})"


def _listed(items: Iterable[str]) -> str:
    shown = list(items)
    more = f" and {len(shown) - _SHOWN} more" if len(shown) > _SHOWN else ""
    return "; ".join(shown[:_SHOWN]) + more
