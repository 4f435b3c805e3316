"""The transition table, written down a second time from design.md."""

from __future__ import annotations

import pytest

from server.core.lifecycle import TRANSITIONS, IllegalTransitionError, Signal, State, next_state

_TABLE = {
    # PAUSED -> STARTING -> RUNNING <-> RETRYING
    (State.PAUSED, Signal.START): State.STARTING,
    (State.STARTING, Signal.READY): State.RUNNING,
    (State.RUNNING, Signal.TROUBLE): State.RETRYING,
    (State.RETRYING, Signal.READY): State.RUNNING,
    # STARTING, RUNNING and RETRYING -> DRAINING -> PAUSED
    (State.STARTING, Signal.STOP): State.DRAINING,
    (State.RUNNING, Signal.STOP): State.DRAINING,
    (State.RETRYING, Signal.STOP): State.DRAINING,
    (State.DRAINING, Signal.STOPPED): State.PAUSED,
    # RUNNING and RETRYING -> FAILED, which only an operator leaves
    (State.RUNNING, Signal.FAIL): State.FAILED,
    (State.RETRYING, Signal.FAIL): State.FAILED,
    (State.FAILED, Signal.START): State.STARTING,
    (State.FAILED, Signal.STOPPED): State.PAUSED,
    # More than design.md says, and why is said in lifecycle.py
    (State.STARTING, Signal.TROUBLE): State.RETRYING,
    (State.STARTING, Signal.FAIL): State.FAILED,
    (State.RETRYING, Signal.TROUBLE): State.RETRYING,
}
_ILLEGAL = [(state, signal) for state in State for signal in Signal if (state, signal) not in _TABLE]


@pytest.mark.parametrize(("state", "signal"), list(_TABLE))
def test_a_legal_transition(state: State, signal: Signal) -> None:
    assert next_state(state, signal) is _TABLE[state, signal]


@pytest.mark.parametrize(("state", "signal"), _ILLEGAL)
def test_an_illegal_transition_raises_names_both_and_changes_nothing(state: State, signal: Signal) -> None:
    before = dict(TRANSITIONS)
    with pytest.raises(IllegalTransitionError, match=f"^{signal.value} is not possible while {state.value}$"):
        next_state(state, signal)
    assert before == TRANSITIONS


def test_the_table_holds_nothing_else() -> None:
    assert TRANSITIONS == _TABLE


def test_failed_is_left_only_by_an_operator() -> None:
    assert {signal for state, signal in TRANSITIONS if state is State.FAILED} == {Signal.START, Signal.STOPPED}


def test_every_state_can_be_reached_from_paused_and_can_reach_it() -> None:
    for first in State:
        reached = {first}
        while more := {after for (state, _), after in TRANSITIONS.items() if state in reached} - reached:
            reached |= more
        assert reached == set(State)


def test_states_are_lower_case_in_the_status() -> None:
    assert [state.value for state in State] == ["paused", "starting", "running", "retrying", "draining", "failed"]
