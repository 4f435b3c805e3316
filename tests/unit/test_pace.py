"""Pace: messages gather while the reader rests, unless a small window makes a rest cost messages."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import pytest

from server.core.pace import FULL_READS, LARGE_READ, TRIAL_SECONDS, Pace
from server.core.rests import Rests

REST = 0.004


def test_without_a_rest_it_never_rests() -> None:
    pace = Pace(Rests(0.0), 100)
    assert [pace.read(1, 1, 1, n / 1000) for n in range(100)] == [0.0] * 100


def test_it_rests_after_a_read() -> None:
    assert Pace(Rests(REST), 100).read(1, 600, 1, 0.0) == REST


def test_it_does_not_rest_after_a_read_that_is_worth_a_request() -> None:
    pace = Pace(Rests(REST), 10_000)
    assert pace.read(200, LARGE_READ, 200, 0.0) == 0.0
    assert pace.read(1, 600, 201, 0.1) == REST


def test_it_does_not_rest_while_all_that_the_broker_may_send_is_in_flight() -> None:
    pace = Pace(Rests(REST), 10)
    assert pace.read(9, 900, 9, 0.0) == REST
    assert pace.read(1, 100, 10, 0.1) == 0.0


@dataclass
class Broker:
    """A broker that keeps at most `window` messages in flight, and has `per_second` new ones; a full one if None."""

    window: int
    per_second: float | None
    seconds_to_kafka: float = 0.001
    most_queued: int = 0

    def run(self, pace: Pace, seconds: float) -> tuple[float, float]:
        """Messages and reads a second."""
        now, messages, reads, queued = 0.0, 0, 0, 0.0
        read_at = 0.0
        while now < seconds:
            if self.per_second is None:
                count = self.window
            else:
                queued += (now - read_at) * self.per_second
                self.most_queued = max(self.most_queued, int(queued))
                count = min(self.window, int(queued))
                queued -= count
            read_at = now
            rest = 0.0
            if count:
                reads += 1
                messages += count
                rest = pace.read(count, count * 600, count, now)
            arrives = 0.0 if self.per_second is None else 1 / self.per_second
            now += max(rest, self.seconds_to_kafka if count >= self.window else 0.0, 0.0 if count else arrives)
            if not rest:
                now += arrives
        return messages / seconds, reads / seconds


@pytest.mark.parametrize("window", [1, 2, 20, 50, 100])
def test_a_broker_with_a_small_window_is_soon_read_without_rests(window: int) -> None:
    rate, _ = Broker(window, None).run(Pace(Rests(REST), 65_534), 10.0)
    assert rate > 0.95 * window / 0.001


@pytest.mark.parametrize("per_second", [1_000, 1_250, 5_000, 20_000])
def test_devices_that_send_in_step_are_read_with_rests_though_they_look_like_a_window(per_second: int) -> None:
    pace = Pace(Rests(REST), 65_534)
    Broker(65_534, per_second).run(pace, 30.0)
    rate, reads = Broker(65_534, per_second).run(pace, 30.0)
    assert rate == pytest.approx(per_second, rel=0.02)
    assert reads < 1.15 / REST


@pytest.mark.parametrize(("window", "per_second"), [(20, 400), (20, 1_000), (50, 2_000)])
def test_rests_that_are_long_for_many_readers_are_no_queue_for_the_broker_of_one(window: int, per_second: int) -> None:
    """Mosquitto sends 20 at once by default, and drops what comes when 1,000 wait."""
    rests = Rests(REST)
    for _ in range(100):
        rests.sampled(1.0, 1_000)
    broker = Broker(window, per_second, seconds_to_kafka=0.005)
    rate, _ = broker.run(Pace(rests, 65_534), 40.0)
    assert rate == pytest.approx(per_second, rel=0.05)
    assert broker.most_queued < 1_000


@pytest.mark.parametrize(("window", "before", "after"), [(20, 2_000, 3_000), (50, 5_000, 7_000)])
def test_rests_that_are_longer_where_much_comes_leave_a_small_window_its_rate(
    window: int, before: int, after: int
) -> None:
    """A window a rest of 6 ms is enough, though after a quieter time it takes long until a trial is due."""
    pace = Pace(Rests(0.006), 65_534)
    Broker(window, before, seconds_to_kafka=0.002).run(pace, 30.0)
    broker = Broker(window, after, seconds_to_kafka=0.002)
    rate, _ = broker.run(pace, 30.0)
    assert rate == pytest.approx(after, rel=0.02)
    assert broker.most_queued < 1_000


def test_a_window_that_is_never_quite_full_is_seen_too() -> None:
    """At QoS 2 some of it is on its way between PUBREC and PUBCOMP, and reads find more or less of that."""
    pace = Pace(Rests(REST), 65_534)
    rests = [pace.read(1, 600, in_flight, n * REST) for n, in_flight in enumerate([50, *[49, 3, 48, 9] * 10])]
    assert 0.0 in rests


def test_when_the_window_is_not_filled_any_more_it_rests_again() -> None:
    pace = Pace(Rests(REST), 65_534)
    Broker(20, None).run(pace, 1.0)
    assert pace.read(20, 9_000, 20, 1.0) == 0.0
    assert pace.read(1, 600, 1, 1.0 + 2 * TRIAL_SECONDS) == 0.0  # that period had a full read, at its beginning
    assert pace.read(1, 600, 1, 1.0 + 4 * TRIAL_SECONDS) == REST


def test_a_trial_in_vain_makes_the_next_one_rarer() -> None:
    pace, trials, resting = Pace(Rests(REST), 65_534), [], True
    for read in range(4_000):
        rests = pace.read(5, 3_000, 5, read * 0.02) == REST
        if resting and not rests:
            trials.append(read)
        resting = rests
    gaps = [after - before for before, after in itertools.pairwise(trials)]
    assert trials[0] == FULL_READS
    assert gaps[0] >= 2 * FULL_READS
    assert all(after > 1.5 * before for before, after in itertools.pairwise(gaps))
