"""Invariant 5: no acknowledgement before Kafka has the message, out of receive order, or on a later connection."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.faults.arrivals import excused_exchange
from tests.faults.history import Violation

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.faults.history import Ack, History, MessageId
    from tests.faults.wirelog import Exchange, WireLog


def check_acknowledgements(history: History, wire: WireLog) -> Iterator[Violation]:
    """Check every acknowledgement on the wire against the times Kafka gave its records."""
    appended: dict[tuple[str, MessageId], float] = {}
    for record in history.records:
        key = record.mapping, record.id
        appended[key] = min(record.at, appended.get(key, record.at))
    for exchange in wire.exchanges:
        ack, delivery = exchange.ack, exchange.delivery
        if ack is None:
            continue
        if exchange.overtook:
            yield _wrong(history, ack, f"{_of(exchange)} overtook that of an earlier message")
        at = appended.get((delivery.mapping, delivery.message))
        if at is not None and ack.at < at and not excused_exchange(history, exchange):
            yield _wrong(history, ack, f"{_of(exchange)} came {(at - ack.at) * 1000:.0f} ms before Kafka had it")
    for ack, earlier in wire.strays:
        what = f"on a later connection than {_of(earlier)}" if earlier else "answers no PUBLISH of its connection"
        yield _wrong(history, ack, what)


def _wrong(history: History, ack: Ack, what: str) -> Violation:
    fault = history.fault_at(ack.at)
    when = f"at {history.clock(ack.at)}, after {fault.name!r} began" if fault else f"at {history.clock(ack.at)}"
    return Violation(
        5, f"mapping {ack.mapping}: {ack.kind} {ack.packet_id} on connection {ack.connection} {when}: {what}"
    )


def _of(exchange: Exchange) -> str:
    topic, seq = exchange.delivery.message
    return f"the acknowledgement of {topic} #{seq}"
