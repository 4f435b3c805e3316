"""The states of a mapping and the transitions between them, as data."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class State(StrEnum):
    """What a mapping does right now, as observed; what an operator wants is in the store."""

    PAUSED = "paused"
    STARTING = "starting"
    RUNNING = "running"
    RETRYING = "retrying"
    DRAINING = "draining"
    FAILED = "failed"


class Signal(StrEnum):
    """What moves a mapping from one state to another."""

    START = "start"  # wanted running: by a resume, a change, a restart or the start of the process
    READY = "ready"  # subscribed, and Kafka takes records
    TROUBLE = "trouble"  # either side is away; the reason says which
    STOP = "stop"  # a pause, a change, a deletion or the end of the process
    STOPPED = "stopped"  # nothing of the mapping runs any more
    FAIL = "fail"  # one of the three causes that only an operator can mend


class IllegalTransitionError(Exception):
    """The transition is not in the table; the state is unchanged."""


# A first connection that fails goes from STARTING to RETRYING, so that the status names the reason at once.
# The broker replays its queue before the subscription is done, so what can't be forwarded may end STARTING in FAILED.
# A FAILED mapping is already stopped: START begins anew, STOPPED only records that it is not wanted any more.
TRANSITIONS: dict[tuple[State, Signal], State] = {
    (State.PAUSED, Signal.START): State.STARTING,
    (State.STARTING, Signal.READY): State.RUNNING,
    (State.STARTING, Signal.TROUBLE): State.RETRYING,
    (State.STARTING, Signal.FAIL): State.FAILED,
    (State.STARTING, Signal.STOP): State.DRAINING,
    (State.RUNNING, Signal.TROUBLE): State.RETRYING,
    (State.RUNNING, Signal.FAIL): State.FAILED,
    (State.RUNNING, Signal.STOP): State.DRAINING,
    (State.RETRYING, Signal.TROUBLE): State.RETRYING,
    (State.RETRYING, Signal.READY): State.RUNNING,
    (State.RETRYING, Signal.FAIL): State.FAILED,
    (State.RETRYING, Signal.STOP): State.DRAINING,
    (State.DRAINING, Signal.STOPPED): State.PAUSED,
    (State.FAILED, Signal.START): State.STARTING,
    (State.FAILED, Signal.STOPPED): State.PAUSED,
}


def next_state(state: State, signal: Signal) -> State:
    """The state after `signal`.

    Raises:
        IllegalTransitionError: the table has no such transition.
    """
    try:
        return TRANSITIONS[state, signal]
    except KeyError:
        raise IllegalTransitionError(f"{signal.value} is not possible while {state.value}") from None


@dataclass(frozen=True, slots=True)
class Reason:
    """Why a mapping is not RUNNING: `code` is stable and short, `detail` is for the reader."""

    code: str
    detail: str
