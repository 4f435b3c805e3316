"""Which protocol version is tried next."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.core.lifecycle import Reason
from server.mqtt.negotiate import SILENT_CLOSES_BEFORE_FALLBACK, Negotiation
from server.mqtt.port import Ended

if TYPE_CHECKING:
    from server.core.subscription import WireProtocol

REASON = Reason("test", "test")
LOST = Ended(REASON)
SILENT = Ended(REASON, silent=True)
REFUSED = Ended(REASON, version_refused=True)


def auto(worked_over: WireProtocol | None = None) -> Negotiation:
    return Negotiation("auto", worked_over=worked_over)


def fallen_back() -> Negotiation:
    negotiation = auto()
    assert negotiation.refused(REFUSED)
    return negotiation


@pytest.mark.parametrize("worked_over", [None, "5", "3.1.1"])
def test_auto_begins_with_mqtt_5_whatever_worked_before(worked_over: WireProtocol | None) -> None:
    assert auto(worked_over).choice == "5"


@pytest.mark.parametrize("worked_over", [None, "5", "3.1.1"])
def test_a_refused_version_falls_back_at_once_even_if_mqtt_5_worked_before(worked_over: WireProtocol | None) -> None:
    negotiation = auto(worked_over)
    assert negotiation.refused(REFUSED)
    assert negotiation.choice == "3.1.1"


def test_only_the_third_silent_close_falls_back() -> None:
    negotiation = auto()
    answers = [negotiation.refused(SILENT) for _ in range(SILENT_CLOSES_BEFORE_FALLBACK)]
    assert answers == [False, False, True]
    assert negotiation.choice == "3.1.1"


def test_silent_closes_must_follow_each_other() -> None:
    negotiation = auto()
    for ended in (SILENT, SILENT, LOST, SILENT, SILENT):
        assert not negotiation.refused(ended)
    assert negotiation.choice == "5"
    assert negotiation.refused(SILENT)


def test_silent_closes_mean_nothing_where_mqtt_5_worked_in_an_earlier_process() -> None:
    negotiation = auto("5")
    assert not any(negotiation.refused(SILENT) for _ in range(10))
    assert negotiation.choice == "5"


def test_silent_closes_mean_nothing_where_mqtt_5_worked_in_this_process() -> None:
    negotiation = auto()
    negotiation.accepted()
    assert not any(negotiation.refused(SILENT) for _ in range(10))
    assert negotiation.choice == "5"


def test_an_accepted_connection_starts_the_count_of_silent_closes_anew() -> None:
    negotiation = auto("3.1.1")
    negotiation.refused(SILENT)
    negotiation.refused(SILENT)
    assert negotiation.refused(SILENT)
    negotiation.accepted()
    assert negotiation.choice == "3.1.1"


@pytest.mark.parametrize("ended", [SILENT, REFUSED])
def test_311_gets_one_attempt_and_is_waited_for(ended: Ended) -> None:
    negotiation = fallen_back()
    assert not negotiation.refused(ended)
    assert negotiation.choice == "5"


def test_311_is_kept_over_lost_connections() -> None:
    negotiation = fallen_back()
    negotiation.accepted()
    for _ in range(5):
        assert not negotiation.refused(LOST)
        assert negotiation.choice == "3.1.1"


def test_after_one_vain_attempt_over_311_three_more_silent_closes_are_needed() -> None:
    negotiation = auto()
    tried: list[str] = []
    for _ in range(8):
        tried.append(negotiation.choice)
        negotiation.refused(SILENT)
    assert tried == ["5", "5", "5", "3.1.1", "5", "5", "5", "3.1.1"]


def test_that_311_worked_does_not_make_mqtt_5_proven() -> None:
    negotiation = fallen_back()
    negotiation.accepted()
    negotiation.prefer_five()
    assert [negotiation.refused(SILENT) for _ in range(3)] == [False, False, True]


def test_a_session_unfit_for_311_goes_back_to_mqtt_5() -> None:
    negotiation = fallen_back()
    negotiation.prefer_five()
    assert negotiation.choice == "5"


@given(
    wanted=st.sampled_from(["5", "3.1.1"]),
    steps=st.lists(st.sampled_from([LOST, SILENT, REFUSED, "accepted", "prefer five"])),
)
def test_a_version_that_was_asked_for_is_never_left(wanted: WireProtocol, steps: list[Ended | str]) -> None:
    negotiation = Negotiation(wanted, worked_over=None)
    for step in steps:
        if isinstance(step, Ended):
            assert not negotiation.refused(step)
        elif step == "accepted":
            negotiation.accepted()
        else:
            negotiation.prefer_five()
        assert negotiation.choice == wanted
