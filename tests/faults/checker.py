"""The judge of the fault programme: a recorded history against the eight invariants of design.md.

It does no I/O and knows nothing of the service's code. test_checker.py proves it by feeding it broken histories.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.faults.acknowledgements import check_acknowledgements
from tests.faults.arrivals import check_arrivals
from tests.faults.conduct import check_conduct
from tests.faults.probes import check_probes
from tests.faults.wirelog import WireLog

if TYPE_CHECKING:
    from tests.faults.history import History, Violation


def violations(history: History) -> list[Violation]:
    """Everything that is wrong with a run, the worst first."""
    wire = WireLog.of(history.wire)
    return [
        *check_arrivals(history, wire),
        *check_acknowledgements(history, wire),
        *check_conduct(history),
        *check_probes(history, wire),
    ]
