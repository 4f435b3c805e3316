"""A run over time, small enough to keep: throughput, states, what was in flight, and the faults."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tests.faults.history import History, Violation
    from tests.faults.plan import Plan

BUCKET_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class FaultSpan:
    """A fault, in seconds since the run began; `recovered` is when a message accepted after it had arrived."""

    name: str
    begin: float
    end: float
    recovered: float | None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a run, as the results file keeps it.

    `accepted` and `delivered` (per mapping) count messages a second, `in_flight` is per mapping and second, `states`
    are per mapping (since, state). `repeats` and `stored` count records of all mappings.
    """

    key: str
    name: str
    seed: int
    date: str
    seconds: float
    published: int
    stored: int
    repeats: int
    violations: list[str]
    skipped: list[str]
    faults: list[FaultSpan]
    accepted: list[int]
    delivered: dict[str, list[int]]
    in_flight: dict[str, list[int]]
    states: dict[str, list[tuple[float, str]]]
    memory: dict[str, float]

    @classmethod
    def of(cls, plan: Plan, history: History, found: list[Violation], *, date: str, skipped: list[str]) -> Outcome:
        """Draw up a run."""
        begin = history.begin
        end = history.end or max((each.at for each in history.samples), default=begin)  # it may have been given up
        buckets = int((end - begin) / BUCKET_SECONDS) + 1

        def per_bucket(moments: list[float]) -> list[int]:
            counts = Counter(int((at - begin) / BUCKET_SECONDS) for at in moments)
            return [counts[index] for index in range(buckets)]

        copies = Counter((each.mapping, each.id) for each in history.records)
        return cls(
            key=plan.key,
            name=plan.name,
            seed=plan.seed,
            date=date,
            seconds=history.since(end),
            published=len(history.publications),
            stored=len(history.records),
            repeats=sum(count - 1 for count in copies.values()),
            violations=[str(each) for each in found],
            skipped=skipped,
            faults=[
                FaultSpan(each.name, history.since(each.begin), history.since(each.end), _recovered(history, each.end))
                for each in history.faults
            ],
            accepted=per_bucket([each.accepted_at for each in history.publications if each.accepted_at is not None]),
            delivered={
                mapping: per_bucket([each.at for each in history.records if each.mapping == mapping])
                for mapping in history.mappings
            },
            in_flight=_in_flight(history, buckets),
            states=_states(history),
            memory={service: _most_memory(history, service) for service in history.services},
        )

    @classmethod
    def load(cls, kept: Mapping[str, Any]) -> Outcome:
        """What `asdict` kept."""
        faults = [FaultSpan(**each) for each in kept["faults"]]
        states = {mapping: [(at, state) for at, state in spans] for mapping, spans in kept["states"].items()}
        return cls(**{**kept, "faults": faults, "states": states})

    def asdict(self) -> dict[str, Any]:
        """As JSON takes it."""
        return asdict(self)


def _recovered(history: History, end: float) -> float | None:
    """When every mapping had written a message that the broker accepted after this moment."""
    later = {each.id for each in history.publications if (each.accepted_at or 0) > end}
    first: dict[str, float] = {}
    for each in history.records:
        if each.id in later:
            first[each.mapping] = min(each.at, first.get(each.mapping, each.at))
    if len(first) < len(history.mappings):
        return None
    return history.since(max(first.values()))


def _in_flight(history: History, buckets: int) -> dict[str, list[int]]:
    most = {mapping: [0] * buckets for mapping in history.mappings}
    for sample in history.samples:
        index = int((sample.at - history.begin) / BUCKET_SECONDS)
        if 0 <= index < buckets:
            for each in sample.mappings:
                most[each.mapping][index] = max(most[each.mapping][index], each.in_flight)
    return most


def _states(history: History) -> dict[str, list[tuple[float, str]]]:
    spans: dict[str, list[tuple[float, str]]] = {mapping: [] for mapping in history.mappings}
    for sample in history.samples:
        seen = {each.mapping: each.state for each in sample.mappings}
        for mapping in history.services[sample.service]:
            state = seen.get(mapping, "no answer")
            if not spans[mapping] or spans[mapping][-1][1] != state:
                spans[mapping].append((max(0.0, history.since(sample.at)), state))
    return spans


def _most_memory(history: History, service: str) -> float:
    """In megabytes."""
    sizes = [each.memory or 0 for each in history.samples if each.service == service]
    return round(max(sizes, default=0) / 2**20, 1)
