"""The arithmetic of the load tool: latencies, ratios, limits, targets, and the reports made of them."""

from __future__ import annotations

import io
import json
import pickle
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pytest
from rich.console import Console

from loadtest import terminal
from loadtest.contest import Spread, compete, good, ratios, spread
from loadtest.document import document
from loadtest.experiments import ManyMappings, Responsiveness, Start
from loadtest.latency import LONGEST_MICROS, Latencies
from loadtest.limits import cores, limits
from loadtest.measurement import Measurement
from loadtest.page import page, section
from loadtest.processes import OTHERS, Sample
from loadtest.reader import BIN_NS, Interval
from loadtest.service import quantile
from loadtest.targets import TARGETS, Finding
from loadtest.verdict import Verdict

if TYPE_CHECKING:
    from loadtest.experiments import Experiments
    from loadtest.forwarders import Forwarder

MILLI = 1_000_000


def latencies(*millis: float) -> Latencies:
    made = Latencies()
    made.record(np.array([round(each * MILLI) for each in millis], dtype=np.int64))
    return made


def measured(
    rate: float = 1_000.0,
    *,
    forwarder: str = "mkf",
    cpu: float = 0.01,
    p50: float = 1.0,
    peak: int = 50_000_000,
    verdict: Verdict | None = None,
    others: dict[str, float] | None = None,
) -> Measurement:
    verdict = verdict or Verdict(published=1_000)
    return Measurement(
        forwarder=forwarder,
        mode="live",
        seconds=(verdict.published - verdict.lost) / rate,
        first_seconds=0.01,
        verdict=verdict,
        latencies=latencies(p50),
        watched_seconds=2.0,
        cpu={"forwarder": cpu, **(others or {})},
        peak=peak,
        samples=[Sample(0.25, 0.5, 40_000_000), Sample(0.5, 0.4, 50_000_000)],
        intervals={20: Interval(900, latencies(1.0)), 21: Interval(100, latencies(2.0))},
        began_ns=20 * BIN_NS,
    )


def test_latency_percentiles_are_milliseconds() -> None:
    found = latencies(*range(1, 1_001)).percentiles()
    assert list(found) == ["p50", "p90", "p99", "p99.9", "max"]
    assert list(found.values()) == pytest.approx([500, 900, 990, 999, 1_000], rel=0.002)


def test_clocks_that_differ_by_a_little_make_no_negative_latency() -> None:
    assert latencies(-0.4).percentile(50) == pytest.approx(0.001)


def test_the_longest_latency_is_an_hour() -> None:
    assert latencies(1e9).percentile(100) == pytest.approx(LONGEST_MICROS / 1e3, rel=0.002)


def test_without_messages_there_is_no_latency() -> None:
    assert Latencies().percentile(99) == 0


def test_latencies_travel_between_processes_and_add_up() -> None:
    there = pickle.loads(pickle.dumps(latencies(1, 1, 1)))  # noqa: S301 - made here
    there.add(latencies(5))
    assert there.count == 4
    assert there.percentile(100) == pytest.approx(5, rel=0.002)


def test_rate_and_cpu_are_per_message_that_arrived() -> None:
    found = measured(500, cpu=0.01, verdict=Verdict(published=2_000, lost=1_000))
    assert found.rate == pytest.approx(500)
    assert found.cpu_micros == pytest.approx(10)
    assert found.cores == pytest.approx(0.005)


def test_a_ratio_is_taken_within_a_round() -> None:
    mine, theirs = [measured(10), measured(40), measured(90)], [measured(5), measured(40), measured(30)]
    found = ratios(mine, theirs, lambda each: each.rate)
    assert found is not None
    assert (found.median, found.least, found.most) == pytest.approx((2, 1, 3))
    assert str(found) == "2.00 (1.00-3.00)"


def test_nothing_is_divided_by_zero() -> None:
    assert ratios([measured()], [measured(cpu=0.0)], lambda each: each.cpu_micros) is None


def test_a_spread_of_one_is_itself() -> None:
    assert spread([4.0]) == Spread(4.0, 4.0, 4.0)


def test_every_other_round_goes_backwards() -> None:
    forwarders = cast("list[Forwarder]", [SimpleNamespace(name="a"), SimpleNamespace(name="b")])
    order: list[tuple[int, str]] = []
    results = compete(
        forwarders,
        3,
        lambda each: measured(forwarder=each.name),
        lambda number, each: order.append((number, each.forwarder)),
    )
    assert order == [(1, "a"), (1, "b"), (2, "b"), (2, "a"), (3, "a"), (3, "b")]
    assert {name: len(found) for name, found in results.items()} == {"a": 3, "b": 3}


@pytest.mark.parametrize(
    ("verdict", "fine"),
    [
        (Verdict(published=5), True),
        (Verdict(published=5, repeated=2), True),
        (Verdict(published=5, lost=1), False),
        (Verdict(published=5, out_of_order=1), False),
    ],
)
def test_loss_and_disorder_in_any_round_are_not_good(verdict: Verdict, fine: bool) -> None:
    assert good({"mkf": [measured(), measured(verdict=verdict)]}) is fine


def test_cores_are_those_used_while_messages_flowed() -> None:
    assert cores(measured(1_000, others={"reader": 0.5}))["reader"] == pytest.approx(0.5)


def test_a_process_or_machine_at_its_limit_is_named() -> None:
    assert limits(measured(others={"kafka": 1.5}), machine_cores=8) == []
    (named,) = limits(measured(others={"mosquitto": 0.97}), machine_cores=8)
    assert "mosquitto used 97%" in named
    assert "nothing to do with it used 0.7 cores" in limits(measured(others={OTHERS: 0.7}), machine_cores=8)[0]
    assert "all processes together" in limits(measured(others={"kafka": 1.9}), machine_cores=2)[0]


def test_a_quantile_of_a_histogram_is_of_what_was_added() -> None:
    before = {0.01: 100.0, 0.1: 100.0, float("inf"): 100.0}
    after = {0.01: 198.0, 0.1: 200.0, float("inf"): 200.0}
    assert quantile(before, after, 0.98) == 0.01
    assert quantile(before, after, 0.99) == 0.1
    assert quantile(after, after, 0.99) is None
    assert quantile({}, {}, 0.99) is None


def experiments(**changes: Any) -> Experiments:
    """Experiments that meet every target."""
    fast = {
        "mkf": [measured(400_000, cpu=0.002)] * 3,
        "mkf, templates": [measured(cpu=0.004)] * 3,
        "prototype": [measured(400_000, cpu=0.02, p50=1.0)] * 3,
        "plain": [measured(4_000)] * 3,
    }
    contests = (
        "drain",
        "live",
        "paced_slowly",
        "paced_fast",
        "small_window",
        "kilobyte",
        "ten_kilobytes",
        "qos0",
        "qos2",
    )
    made = {
        **dict.fromkeys(contests, fast),
        "growth": {10**power: measured(400_000) for power in range(4, 8)},
        "broker_alone": [40_000.0],
        "responsiveness": Responsiveness([0.01] * 100, 0.01),
        "many_mappings": ManyMappings(0.01, 0.00005, 0.5, latencies(4), 250_000_000, 0.5),
        "start": Start(1.0, 2.0),
        **changes,
    }
    return cast("Experiments", SimpleNamespace(**made))


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: f"{target.what}: {target.wanted}")
def test_every_target_is_found_met_when_it_is(target: Any) -> None:
    assert target.find(experiments()).met is (None if target.wanted.startswith("(") else True)


def test_the_broker_alone_is_compared_with_the_plain_loop() -> None:
    (row,) = [each for each in TARGETS if "alone" in each.wanted]
    drain = {"plain": [measured(1_000), measured(2_000), measured(3_000)]}
    found = row.find(experiments(drain=drain, broker_alone=[40_000.0, 60_000.0, 80_000.0]))
    assert found == Finding("60,000 to 2,000 msg/s", "30.00 (20.00-40.00)", None)


SLOW = {"mkf": [measured(4_000, cpu=0.02, p50=20, peak=500_000_000)], "plain": [measured(4_000)]}
SLOW |= {"mkf, templates": [measured(cpu=0.2)], "prototype": [measured(400_000, cpu=0.02, p50=1.0)]}


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: f"{target.what}: {target.wanted}")
def test_every_target_is_found_missed_when_it_is(target: Any) -> None:
    contests = (
        "drain",
        "live",
        "paced_slowly",
        "paced_fast",
        "small_window",
        "kilobyte",
        "ten_kilobytes",
        "qos0",
        "qos2",
    )
    made = experiments(
        **dict.fromkeys(contests, SLOW),
        growth={10**power: measured(10.0 ** (8 - power), peak=10**power * 10) for power in range(4, 8)},
        responsiveness=Responsiveness([0.2] * 100, 0.05),
        many_mappings=ManyMappings(0.1, 0.001, 1.5, latencies(300), 450_000_000, 3),
        start=Start(9.0, 12.0),
    )
    assert target.find(made).met is (None if target.wanted.startswith("(") else False)


def test_without_the_prototype_its_rows_are_not_measured() -> None:
    alone = {name: found for name, found in SLOW.items() if name != "prototype"}
    (row,) = [row for row in TARGETS if (row.what, row.wanted) == ("drain, QoS 1", ">= 0.9 x prototype")]
    assert row.find(experiments(drain=alone)) == Finding("not measured", "", None)


def test_without_its_metric_the_event_loops_lag_is_not_measured() -> None:
    (row,) = [row for row in TARGETS if "event loop" in row.what]
    assert row.find(experiments(responsiveness=Responsiveness([0.01], None))).met is None


def test_the_reports_say_the_same_in_three_ways() -> None:
    results = {
        "mkf": [measured(2_000, verdict=Verdict(published=1_000, lost=7))],
        "plain <b>": [measured(1_000, forwarder="plain <b>")],
    }
    written = io.StringIO()
    terminal.show(results, "a title", Console(file=written, width=120))
    shown = written.getvalue()
    assert "mkf / plain <b>, round by round" in shown
    assert "2,000" in shown
    assert "lost 7" in terminal.line(1, results["mkf"][0])
    plain = json.loads(json.dumps(document(results)))
    assert plain["ratios"]["mkf / plain <b>"]["rate"]["median"] == pytest.approx(2)
    assert plain["forwarders"]["mkf"][0]["verdict"]["lost"] == 7
    assert [each["at"] for each in plain["forwarders"]["mkf"][0]["arrivals"]] == [0, 0.5]
    shown = page("A title", {"cpu": "2 x some"}, [section("drain", results)])
    assert "plain &lt;b&gt;" in shown
    assert "2 x some" in shown
    own_words = shown.partition("</script>")[2]
    assert "http" not in own_words
    assert 'src="' not in own_words
