"""Several forwarders in one run: in turn, round by round, so that whatever else the machine does meets all of them."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from loadtest.forwarders import Forwarder
    from loadtest.measurement import Measurement

# By round; one list a forwarder, in the same order of rounds.
Results = dict[str, list["Measurement"]]


@dataclass(frozen=True, slots=True)
class Spread:
    """The middle, the least and the most of some figures."""

    median: float
    least: float
    most: float

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.least:.2f}-{self.most:.2f})"


def spread(figures: Sequence[float]) -> Spread:
    """Summarize figures; there must be one."""
    return Spread(median(figures), min(figures), max(figures))


def compete(
    forwarders: Sequence[Forwarder],
    rounds: int,
    measure: Callable[[Forwarder], Measurement],
    tell: Callable[[int, Measurement], None],
) -> Results:
    """Measure every forwarder in each round; every other round goes backwards, so that none always comes first.

    `tell` gets each measurement as soon as it is there, with the number of its round, from 1.
    """
    results: Results = {forwarder.name: [] for forwarder in forwarders}
    for number in range(1, rounds + 1):
        for forwarder in forwarders if number % 2 else reversed(forwarders):
            found = measure(forwarder)
            results[forwarder.name].append(found)
            tell(number, found)
    return results


def ratios(
    ours: Sequence[Measurement], theirs: Sequence[Measurement], figure: Callable[[Measurement], float]
) -> Spread | None:
    """Our figure divided by theirs, round by round; None if theirs is 0 somewhere."""
    pairs = [(figure(mine), figure(other)) for mine, other in zip(ours, theirs, strict=True)]
    if not all(other for _, other in pairs):
        return None
    return spread([mine / other for mine, other in pairs])


def middle(measurements: Sequence[Measurement], figure: Callable[[Measurement], float]) -> float:
    """The median of a figure."""
    return median(figure(each) for each in measurements)


def good(results: Mapping[str, Sequence[Measurement]]) -> bool:
    """Whether no forwarder lost a message or broke the order in any round."""
    return all(each.verdict.good for measurements in results.values() for each in measurements)
