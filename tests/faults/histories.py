"""Histories for the tests of the checker: good ones, ways to break them, and what the checker says of them."""

from __future__ import annotations

from dataclasses import replace

from tests.faults.checker import violations
from tests.faults.history import (
    Ack,
    Answer,
    Cost,
    Delivery,
    Ended,
    Fault,
    History,
    MappingSample,
    Publication,
    Sample,
    Stored,
)

TOPICS = 5
PARTITIONS = 3
MAPPINGS = ("5/qos1", "5/qos2")
BEGIN = 1_000_000.0
# From publication to Kafka, and from there to the acknowledgement.
TO_SERVICE, TO_KAFKA, TO_ACK = 0.010, 0.020, 0.030
WELL = Answer(200)


def good(*, seconds: float = 60.0, per_second: int = 10, fault: Fault | None = None) -> History:
    """A history in which everything went as it should; the fault, if there is one, changed nothing."""
    history = History(
        "good", 1, BEGIN, BEGIN + seconds, services={"5": MAPPINGS}, memory_limit=150, faults=[fault] if fault else []
    )
    for number in range(int(seconds * per_second)):
        at = BEGIN + number / per_second
        topic, seq = f"load/{number % TOPICS}", number // TOPICS
        history.publications.append(Publication(topic, seq, f"u{number}", at, accepted_at=at + 0.001))
        for index, mapping in enumerate(MAPPINGS):
            write(history, number, mapping, at=at + TO_KAFKA)
            qos = index + 1
            packet_id = number % 65_535 + 1
            history.wire += [
                Delivery(at + TO_SERVICE, mapping, index, packet_id, qos, False, (topic, seq)),
                Ack(at + TO_ACK, mapping, index, packet_id, "PUBACK" if qos == 1 else "PUBREC", at + TO_ACK),
            ]
    history.wire.sort(key=lambda event: event.at)
    for tick in range(int(seconds * 2)):
        history.samples.append(look(BEGIN + tick / 2, received=tick * 5))
    return history


def write(history: History, number: int, mapping: str, *, at: float) -> None:
    """Append a record to Kafka, behind all that are there."""
    topic, seq = f"load/{number % TOPICS}", number // TOPICS
    partition = number % TOPICS % PARTITIONS
    offset = sum(1 for each in history.records if each.mapping == mapping and each.partition == partition)
    history.records.append(Stored(mapping, topic, seq, f"u{number}", partition, offset, at))


def look(at: float, *, received: int, **changes: object) -> Sample:
    mappings = tuple(MappingSample(each, "running", None, received, received - 3, 0, 0, 3) for each in MAPPINGS)
    return replace(Sample(at, "5", WELL, WELL, 100, mappings), **changes)  # type: ignore[arg-type] # in tests only


KILL = Cost(repeats="connection", away=True)
KAFKA_AWAY = Cost(repeats="flight", blames=("kafka_",))


def fault(begin: float, end: float, cost: Cost = KILL, name: str = "kill -9") -> Fault:
    return Fault(name, BEGIN + begin, BEGIN + end, cost)


def found(history: History) -> list[tuple[int, str]]:
    return [(each.invariant, str(each)) for each in violations(history)]


def the_only(history: History, invariant: int) -> str:
    """What the checker says of a history with one thing wrong."""
    (violation,) = violations(history)
    assert violation.invariant == invariant, str(violation)
    return str(violation)


# --- how they are broken -----------------------------------------------------------------------------------------


def acks(history: History, mapping: str) -> list[Ack]:
    return [event for event in history.wire if isinstance(event, Ack) and event.mapping == mapping]


def without(history: History, mapping: str, message: tuple[str, int]) -> None:
    """Take a record away that everything else says is there; offsets keep their gap."""
    history.records = [each for each in history.records if (each.mapping, each.id) != (mapping, message)]


def never_delivered(history: History, messages: set[tuple[str, int]], *mappings: str) -> None:
    """Take all traces of messages behind the broker away."""
    chosen = mappings or MAPPINGS
    for mapping in chosen:
        for message in messages:
            without(history, mapping, message)
    gone = {
        (event.mapping, event.packet_id)
        for event in history.wire
        if isinstance(event, Delivery) and event.message in messages and event.mapping in chosen
    }
    history.wire = [
        event for event in history.wire if isinstance(event, Ended) or (event.mapping, event.packet_id) not in gone
    ]


def unanswered(history: History, number: int, mapping: str, *, ended: float) -> None:
    """The connection breaks before this message was acknowledged; the rest of it goes on on a new one."""
    gone = {number + 1}
    events = []
    for event in history.wire:
        if event.mapping != mapping:
            events.append(event)
            continue
        late = event.at >= BEGIN + ended
        if isinstance(event, Ack):
            if event.packet_id in gone:
                continue
            event.connection = 50 if late else event.connection
            events.append(event)
        elif isinstance(event, Delivery):
            events.append(replace(event, connection=50) if late else event)
    history.wire = sorted([*events, Ended(BEGIN + ended, mapping, MAPPINGS.index(mapping))], key=lambda each: each.at)


def delayed(history: History, since: float, until: float, mapping: str) -> None:
    """Nothing of a mapping happens between the two moments, but all at once shortly before the second."""

    def shifted(at: float) -> float:
        passed = at - BEGIN
        return BEGIN + until - 0.2 + passed / until * 0.1 if since <= passed < until else at

    history.records = [
        replace(each, at=shifted(each.at)) if each.mapping == mapping else each for each in history.records
    ]
    wire = []
    for event in history.wire:
        if event.mapping != mapping:
            wire.append(event)
        elif isinstance(event, Ack):
            event.at = shifted(event.at) + 0.05 if shifted(event.at) != event.at else event.at
            wire.append(event)
        else:
            wire.append(replace(event, at=shifted(event.at)))
    history.wire = sorted(wire, key=lambda event: event.at)


def swap(history: History, first: int, second: int) -> None:
    """Exchange two messages of one topic in Kafka, in the first mapping."""
    one, other = (
        next(
            index
            for index, each in enumerate(history.records)
            if each.mapping == MAPPINGS[0] and each.id == (f"load/{number % TOPICS}", number // TOPICS)
        )
        for number in (first, second)
    )
    records = history.records
    records[one], records[other] = (
        replace(records[one], offset=records[other].offset),
        replace(records[other], offset=records[one].offset),
    )


def with_mapping(sample: Sample, **changes: object) -> Sample:
    first, *others = sample.mappings
    return replace(sample, mappings=(replace(first, **changes), *others))  # type: ignore[arg-type] # in tests only
