"""The plan of the fault programme: as many faults as promised, the same for the same seed, and a report of them."""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from tests.faults.checker import violations
from tests.faults.histories import fault, good, without
from tests.faults.plan import MOST_IN_A_RUN, plans
from tests.faults.report import write_report
from tests.faults.timeline import Outcome

if TYPE_CHECKING:
    from pathlib import Path

    from tests.faults.history import History

# In the first column and in the second, by group.
PROMISED = {
    "kill": (8, 120),
    "SIGTERM": (3, 40),
    "MQTT": (5, 70),
    "Kafka": (6, 90),
    "network": (6, 90),
    "SIGSTOP": (2, 20),
    "store": (4, 15),
}


@pytest.mark.parametrize("quick", [True, False])
def test_as_many_faults_are_planned_as_promised(quick: bool) -> None:
    planned = Counter(kind.group for plan in plans(1, quick=quick) for kind, _ in plan.faults)
    assert planned == {group: counts[0 if quick else 1] for group, counts in PROMISED.items()}


def test_every_turn_of_a_kind_comes_once_and_no_run_is_too_long() -> None:
    planned = plans(1, quick=False)
    faults = [(kind.name, turn) for plan in planned for kind, turn in plan.faults]
    assert len(set(faults)) == len(faults)
    assert max(len(plan.faults) for plan in planned) == MOST_IN_A_RUN
    assert len({plan.key for plan in planned}) == len(planned)


def test_the_same_seed_plans_the_same_and_another_something_else() -> None:
    assert plans(1, quick=True) == plans(1, quick=True)
    assert plans(1, quick=True) != plans(2, quick=True)
    assert {plan.key for plan in plans(1, quick=True)}.isdisjoint({plan.key for plan in plans(2, quick=True)})


def test_a_filter_looks_at_groups_and_names() -> None:
    assert {kind.group for plan in plans(1, quick=True, wanted="kafka:") for kind, _ in plan.faults} == {"Kafka"}
    assert {kind.name for plan in plans(1, quick=True, wanted="LATE") for kind, _ in plan.faults} == {
        "MQTT connections reset while Kafka is late",
        "Kafka late",
    }
    assert plans(1, quick=True, wanted="nothing of the kind") == []


def outcome(history: History) -> Outcome:
    return Outcome.of(plans(1, quick=False)[0], history, violations(history), date="2026-01-02T03:04:05", skipped=[])


def test_an_outcome_is_kept_as_a_line_of_json() -> None:
    kept = outcome(good(fault=fault(20, 22)))
    assert kept.violations == []
    assert (kept.published, kept.stored, kept.repeats, kept.seconds) == (600, 1_200, 0, 60.0)
    assert kept.faults[0].recovered == pytest.approx(22.02)
    assert kept.accepted[:3] == [10, 10, 10]
    assert kept.states == {"5/qos1": [(0.0, "running")], "5/qos2": [(0.0, "running")]}
    assert Outcome.load(json.loads(json.dumps(kept.asdict()))) == kept


def test_a_report_needs_no_network_and_names_what_was_broken(tmp_path: Path) -> None:
    broken = good(fault=fault(1, 2, name="kill -9"))
    without(broken, "5/qos2", ("load/2", 7))
    markdown, html = write_report([outcome(good()), outcome(broken)], tmp_path, command="python -m tests.faults")
    for text in (markdown.read_text(), html.read_text()):
        assert "kill -9" in text
        assert "load/2 #7, acknowledged at 3.73 s" in text
        assert "1 runs broke an invariant" in text
    page = html.read_text()
    assert page.count("<svg") == page.count("</svg>") == 2
    assert "http" not in page


def test_a_report_of_nothing_says_so(tmp_path: Path) -> None:
    markdown, _ = write_report([], tmp_path, command="python -m tests.faults --report")
    assert "never run" in markdown.read_text()
