"""From what is wanted and what runs to what to do now: a plain function, without a loop or a clock.

It is level-triggered: what can't be done yet (a start whose client id another mapping still holds) is not an action,
and comes out of a later call. Stop first, start later.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, TypeAlias

from server.core.lifecycle import State

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping


@dataclass(frozen=True, slots=True)
class Wanted:
    """A mapping as the store has it. `client_id` is "" for a session that is not durable."""

    generation: int
    paused: bool
    client_id: str


@dataclass(frozen=True, slots=True)
class Running:
    """A mapping as observed. `active` says that its task has not ended, `stopping` that it was asked to.

    `holds` are the client ids it may be connected with: its own, and former ones that it still drains.
    """

    generation: int
    state: State
    active: bool
    stopping: bool
    holds: frozenset[str]


@dataclass(frozen=True, slots=True)
class Stop:
    """Drain this mapping."""

    name: str


@dataclass(frozen=True, slots=True)
class Rest:
    """A FAILED mapping is not wanted running any more: it is PAUSED."""

    name: str


@dataclass(frozen=True, slots=True)
class Forget:
    """Nothing of this mapping runs, and it is not wanted any more."""

    name: str


@dataclass(frozen=True, slots=True)
class KeepSession:
    """A mapping with this client id exists (again): stop ending its session."""

    client_id: str


@dataclass(frozen=True, slots=True)
class EndSession:
    """End this session at the broker."""

    client_id: str


@dataclass(frozen=True, slots=True)
class Start:
    """Run this mapping."""

    name: str


Action: TypeAlias = Stop | Rest | Forget | KeepSession | EndSession | Start


def reconcile(
    wanted: Mapping[str, Wanted],
    running: Mapping[str, Running],
    *,
    removals: Collection[str],
    ending: Collection[str],
    owners: Mapping[str, str] = MappingProxyType({}),
) -> list[Action]:
    """What to do now, in this order.

    `removals` are the client ids of sessions to be ended, `ending` those for which that is under way. `owners` says
    whose session a client id is: what is queued under a former id is that mapping's, and waits until it has drained it.
    """
    stops: list[Action] = []
    starts: list[Action] = []
    for name, observed in running.items():
        wish = wanted.get(name)
        current = wish is not None and not wish.paused and wish.generation == observed.generation
        if observed.active:
            if not current and not observed.stopping:
                stops.append(Stop(name))
        elif wish is None:
            stops.append(Forget(name))
        elif observed.state is State.FAILED and wish.paused:
            stops.append(Rest(name))
    held = {client_id for observed in running.values() if observed.active for client_id in observed.holds if client_id}
    # A paused mapping does not keep its session from being ended: it was reset, and shall not queue any more.
    claimed = {wish.client_id for wish in wanted.values() if wish.client_id and not wish.paused}
    keeps: list[Action] = [
        KeepSession(client_id) for client_id in ending if client_id not in removals or client_id in claimed
    ]
    ends: list[Action] = [
        EndSession(client_id)
        for client_id in removals
        if client_id not in held and client_id not in claimed and client_id not in ending
    ]
    for name, wish in wanted.items():
        owner = owners.get(wish.client_id, name)
        if wish.paused or wish.client_id in held or wish.client_id in ending or (owner != name and owner in wanted):
            continue
        observed_now = running.get(name)
        if observed_now is not None and observed_now.active:
            continue
        failed = observed_now is not None and observed_now.state is State.FAILED
        if failed and observed_now is not None and observed_now.generation == wish.generation:
            continue
        starts.append(Start(name))
    return [*stops, *keeps, *ends, *starts]
