"""Invariants 6 to 8: memory, recovery, exits, and books that balance."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.faults.history import Violation

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.faults.history import Fault, History, MessageId

RECOVERY_SECONDS = 30.0
EXIT_SECONDS = 25.0
UNDISTURBED_SECONDS = 5.0
_MEGABYTE = 1024 * 1024


def check_conduct(history: History) -> Iterator[Violation]:
    """Check every service."""
    yield from _memory(history)
    yield from _recoveries(history)
    yield from _exits(history)
    yield from _books(history)


def _memory(history: History) -> Iterator[Violation]:
    for service in history.services:
        sizes = [(each.memory, each.at) for each in history.samples if each.service == service and each.memory]
        size, at = max(sizes, default=(0, 0.0))
        if size > history.memory_limit:
            yield Violation(
                6,
                f"service {service} took {size / _MEGABYTE:.0f} MB at {history.clock(at)}, the limit is "
                f"{history.memory_limit / _MEGABYTE:.0f} MB",
            )


def _recoveries(history: History) -> Iterator[Violation]:
    first: dict[tuple[str, MessageId], float] = {}
    for record in history.records:
        key = record.mapping, record.id
        first[key] = min(record.at, first.get(key, record.at))
    for fault in history.faults:
        # The load may have to recover too, and has its own time for that.
        after = [(each.accepted_at, each.id) for each in history.publications if (each.accepted_at or 0) > fault.end]
        since = min((at for at, _ in after if at is not None), default=fault.end)
        for service, mappings in history.services.items():
            for mapping in mappings:
                if after:
                    arrived = min(first.get((mapping, each), float("inf")) for _, each in after)
                    yield from _too_slow(history, fault, mapping, arrived - since, "a message published after it came")
                running = _running_after(history, fault, service, mapping)
                if running is not None:
                    yield from _too_slow(history, fault, mapping, running - fault.end, "it was running")
        if not fault.cost.stalls:
            yield from _disturbed(history, fault, first)


def _running_after(history: History, fault: Fault, service: str, mapping: str) -> float | None:
    """When the mapping was first seen running after the fault; None if it was not looked at for long enough."""
    looks = [each for each in history.samples if each.service == service and each.at >= fault.end]
    for look in looks:
        if any(each.mapping == mapping and each.state == "running" for each in look.mappings):
            return look.at
    return float("inf") if looks and looks[-1].at > fault.end + RECOVERY_SECONDS else None


def _too_slow(history: History, fault: Fault, mapping: str, seconds: float, what: str) -> Iterator[Violation]:
    if seconds > RECOVERY_SECONDS:
        when = "never" if seconds == float("inf") else f"only {seconds:.1f} s later"
        yield Violation(
            7, f"mapping {mapping} after {fault.name!r}, which ended at {history.clock(fault.end)}: {what} {when}"
        )


def _disturbed(history: History, fault: Fault, first: dict[tuple[str, MessageId], float]) -> Iterator[Violation]:
    """Check that messages flowed as if nothing had been."""
    for mapping in history.mappings:
        late = [
            each
            for each in history.publications
            if each.accepted_at is not None
            and fault.begin <= each.accepted_at <= fault.end
            and first.get((mapping, each.id), float("inf")) > each.accepted_at + UNDISTURBED_SECONDS
        ]
        if late:
            topic, seq = late[0].id
            yield Violation(
                7,
                f"mapping {mapping}: {fault.name!r} is no reason to stop, but {len(late)} messages took more than "
                f"{UNDISTURBED_SECONDS:g} s, first {topic} #{seq}, accepted at "
                f"{history.clock(late[0].accepted_at or 0)}",
            )


def _exits(history: History) -> Iterator[Violation]:
    for exit_ in history.exits:
        when = f"service {exit_.service}, SIGTERM at {history.clock(exit_.at)}"
        if exit_.seconds > EXIT_SECONDS:
            yield Violation(7, f"{when}: it took {exit_.seconds:.1f} s to end, {EXIT_SECONDS:g} s are allowed")
        if exit_.code:
            yield Violation(7, f"{when}: it ended with {exit_.code}")


def _books(history: History) -> Iterator[Violation]:
    for sample in history.samples:
        for each in sample.mappings:
            accounted = each.delivered + each.dead_lettered + each.dropped + each.in_flight
            if each.received != accounted:
                yield Violation(
                    8,
                    f"mapping {each.mapping} at {history.clock(sample.at)}: {each.received} received, but "
                    f"{each.delivered} delivered + {each.dead_lettered} dead-lettered + {each.dropped} dropped + "
                    f"{each.in_flight} in flight = {accounted}",
                )
