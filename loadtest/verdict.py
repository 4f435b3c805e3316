"""What became of the messages: lost, repeated, out of order per MQTT topic. Pure arithmetic on numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

# Above every number, so that one sort key holds topic and number.
_STRIDE = np.int64(1 << 40)


@dataclass(frozen=True, slots=True)
class Verdict:
    """`published` messages, and what a reader of Kafka found of them.

    `out_of_order` counts messages that first came after a later one of their topic; `topics_out_of_order` the topics
    with such messages; `first_lost` is a number, None if nothing is lost; `foreign` are numbers nobody published.
    """

    published: int
    lost: int = 0
    repeated: int = 0
    out_of_order: int = 0
    topics_out_of_order: int = 0
    first_lost: int | None = None
    foreign: int = 0

    @property
    def good(self) -> bool:
        """Nothing lost and nothing out of order; repeats are allowed."""
        return not (self.lost or self.out_of_order or self.foreign)


class Judge:
    """Takes the numbers of messages in the order in which a reader of Kafka gets them, some at a time.

    That order must be the partition's within a partition. Memory: a byte a message.
    """

    def __init__(self, topics: int) -> None:
        self._topics = topics
        self._seen = np.zeros(1 << 16, dtype=np.bool_)
        self._latest = np.full(topics, -1, dtype=np.int64)
        self._late = np.zeros(topics, dtype=np.int64)
        self._repeated = 0

    def take(self, numbers: NDArray[np.int64]) -> int:
        """Take the next ones; returns how many of them are new."""
        if not len(numbers):
            return 0
        self._grow(int(numbers.max()) + 1)
        _, places = np.unique(numbers, return_index=True)
        first = numbers[np.sort(places)]
        fresh = first[~self._seen[first]]
        self._repeated += len(numbers) - len(fresh)
        self._seen[fresh] = True
        self._check_order(fresh)
        return len(fresh)

    def verdict(self, published: Sequence[int]) -> Verdict:
        """Judge, given how many messages each publisher has sent."""
        publishers = len(published)
        expected = np.zeros(max(len(self._seen), max(published) * publishers), dtype=np.bool_)
        for publisher, count in enumerate(published):
            expected[publisher : publisher + count * publishers : publishers] = True
        seen = np.zeros_like(expected)
        seen[: len(self._seen)] = self._seen
        lost = np.flatnonzero(expected & ~seen)
        return Verdict(
            published=sum(published),
            lost=len(lost),
            repeated=self._repeated,
            out_of_order=int(self._late.sum()),
            topics_out_of_order=int(np.count_nonzero(self._late)),
            first_lost=int(lost[0]) if len(lost) else None,
            foreign=int(np.count_nonzero(seen & ~expected)),
        )

    def _grow(self, size: int) -> None:
        if size > len(self._seen):
            larger = np.zeros(max(size, 2 * len(self._seen)), dtype=np.bool_)
            larger[: len(self._seen)] = self._seen
            self._seen = larger

    def _check_order(self, fresh: NDArray[np.int64]) -> None:
        if not len(fresh):
            return
        # Stable, so within a topic they stay in the order in which they came.
        by_topic = fresh[np.argsort(fresh % self._topics, kind="stable")]
        topic = by_topic % self._topics
        # A topic's numbers lie above those of all topics before it, so one running maximum serves all of them.
        key = topic * _STRIDE + by_topic
        before = np.empty_like(key)
        before[0] = -1
        before[1:] = np.maximum.accumulate(key)[:-1]
        earlier_batches = topic * _STRIDE + self._latest[topic]
        late = key < np.maximum(before, earlier_batches)
        np.add.at(self._late, topic[late], 1)
        np.maximum.at(self._latest, topic, by_topic)
