"""What the load tool says of the messages it finds in Kafka."""

from __future__ import annotations

import random

import numpy as np
import pytest

from loadtest.verdict import Judge, Verdict


def judged(*batches: list[int], published: tuple[int, ...] = (), topics: int = 1) -> Verdict:
    judge = Judge(topics)
    for batch in batches:
        judge.take(np.array(batch, dtype=np.int64))
    return judge.verdict(published or (1 + max(number for batch in batches for number in batch),))


def test_all_messages_in_order_are_good_however_they_are_divided_into_batches() -> None:
    for cut in range(11):
        numbers = list(range(10))
        assert judged(numbers[:cut], numbers[cut:], topics=3) == Verdict(published=10)


def test_topics_may_interleave_as_they_like() -> None:
    assert judged([0, 2, 4, 1], [3, 5], topics=2).good
    assert judged([1, 3, 5, 0, 2, 4], topics=2).good


def test_what_never_comes_is_lost() -> None:
    verdict = judged([0, 3], published=(5,))
    assert (verdict.lost, verdict.first_lost, verdict.out_of_order) == (3, 1, 0)
    assert not verdict.good


def test_nothing_at_all_loses_everything() -> None:
    assert Judge(1).verdict([3, 2]).lost == 5


@pytest.mark.parametrize("batches", [([0, 1, 2, 0, 1, 2, 3],), ([0, 1, 2], [0, 1, 2, 3]), ([0], [1, 2, 0, 1], [2, 3])])
def test_repeats_are_counted_and_are_neither_loss_nor_disorder(batches: tuple[list[int], ...]) -> None:
    assert judged(*batches) == Verdict(published=4, repeated=3)
    assert judged(*batches).good


@pytest.mark.parametrize("batches", [([0, 2, 1, 3],), ([0, 2], [1, 3]), ([0], [2], [1], [3])])
def test_a_message_after_a_later_one_of_its_topic_is_out_of_order(batches: tuple[list[int], ...]) -> None:
    verdict = judged(*batches)
    assert (verdict.out_of_order, verdict.topics_out_of_order, verdict.lost) == (1, 1, 0)
    assert not verdict.good


def test_disorder_is_counted_per_topic() -> None:
    verdict = judged([4, 2, 0, 1, 5, 3], topics=2)
    assert (verdict.out_of_order, verdict.topics_out_of_order) == (3, 2)


def test_publishers_may_have_sent_different_numbers_of_messages() -> None:
    # The first sent 0, 2, 4 and the second 1.
    assert judged([0, 1, 2, 4], published=(3, 1), topics=2) == Verdict(published=4)


def test_a_number_nobody_published_is_foreign() -> None:
    verdict = judged([0, 1, 2], published=(2,))
    assert verdict.foreign == 1
    assert not verdict.good


def test_it_agrees_with_a_plain_count_on_random_streams() -> None:
    draw = random.Random(7)  # noqa: S311 - not a secret
    for _ in range(200):
        topics, messages = draw.randint(1, 5), draw.randint(1, 40)
        stream = [draw.randrange(messages) for _ in range(draw.randint(1, 80))]
        cuts = sorted(draw.sample(range(len(stream) + 1), min(3, len(stream))))
        batches = [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
        seen: set[int] = set()
        latest: dict[int, int] = {}
        late = 0
        for number in stream:
            if number not in seen:
                late += number < latest.get(number % topics, -1)
                latest[number % topics] = max(number, latest.get(number % topics, -1))
            seen.add(number)
        verdict = judged(*[batch for batch in batches if batch], published=(messages,), topics=topics)
        assert verdict.out_of_order == late
        assert verdict.repeated == len(stream) - len(seen)
        assert verdict.lost == messages - len(seen)
