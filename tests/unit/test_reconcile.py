"""Reconcile: whatever was wanted and whatever runs, doing what it says leads to what is wanted, stop first."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from server.core.lifecycle import State
from server.runtime.reconcile import (
    Action,
    EndSession,
    Forget,
    KeepSession,
    Rest,
    Running,
    Start,
    Stop,
    Wanted,
    reconcile,
)

_WISH = Wanted(generation=1, paused=False, client_id="a")
_RUNS = Running(generation=1, state=State.RUNNING, active=True, stopping=False, holds=frozenset({"a"}))
_RESTS = replace(_RUNS, state=State.PAUSED, active=False)
_FAILED = replace(_RUNS, state=State.FAILED, active=False)


def _actions(
    wanted: dict[str, Wanted],
    running: dict[str, Running],
    removals: set[str] | None = None,
    ending: set[str] | None = None,
) -> list[Action]:
    return reconcile(wanted, running, removals=removals or set(), ending=ending or set())


def test_nothing_wanted_and_nothing_running_is_nothing_to_do() -> None:
    assert _actions({}, {}) == []


def test_what_is_wanted_is_started_and_what_runs_as_wanted_is_left_alone() -> None:
    assert _actions({"m": _WISH}, {}) == [Start("m")]
    assert _actions({"m": _WISH}, {"m": _RUNS}) == []
    assert _actions({"m": _WISH}, {"m": _RESTS}) == [Start("m")]


@pytest.mark.parametrize("wish", [None, replace(_WISH, paused=True), replace(_WISH, generation=2)])
def test_what_is_not_wanted_as_it_runs_is_stopped_once(wish: Wanted | None) -> None:
    wanted = {"m": wish} if wish else {}
    assert _actions(wanted, {"m": _RUNS}) == [Stop("m")]
    assert _actions(wanted, {"m": replace(_RUNS, stopping=True)}) == []


def test_a_deleted_mapping_is_forgotten_once_nothing_of_it_runs() -> None:
    assert _actions({}, {"m": _RESTS}) == [Forget("m")]
    assert _actions({}, {"m": _FAILED}) == [Forget("m")]


def test_a_failed_mapping_stays_failed_until_its_generation_is_new() -> None:
    assert _actions({"m": _WISH}, {"m": _FAILED}) == []
    assert _actions({"m": replace(_WISH, generation=2)}, {"m": _FAILED}) == [Start("m")]


def test_a_failed_mapping_that_is_paused_rests() -> None:
    assert _actions({"m": replace(_WISH, paused=True)}, {"m": _FAILED}) == [Rest("m")]
    assert _actions({"m": replace(_WISH, paused=True)}, {"m": _RESTS}) == []


def test_a_client_id_that_another_mapping_still_holds_keeps_a_mapping_from_starting() -> None:
    running = {"old": replace(_RUNS, stopping=True)}
    assert _actions({"new": _WISH}, running) == []
    assert _actions({"new": _WISH}, {"old": _RESTS}) == [Forget("old"), Start("new")]


def test_a_former_client_id_that_is_still_drained_blocks_other_mappings() -> None:
    drains = replace(_RUNS, holds=frozenset({"b", "a"}))
    assert _actions({"m": replace(_WISH, client_id="b"), "other": _WISH}, {"m": drains}) == []


def test_mappings_without_a_client_id_never_block_each_other() -> None:
    anonymous = replace(_WISH, client_id="")
    running = {"m": replace(_RUNS, holds=frozenset({""}))}
    assert _actions({"m": anonymous, "n": anonymous}, running) == [Start("n")]


def test_a_session_is_ended_only_when_nobody_holds_or_wants_its_client_id() -> None:
    assert _actions({}, {}, removals={"a"}) == [EndSession("a")]
    assert _actions({}, {"m": replace(_RUNS, stopping=True)}, removals={"a"}) == []
    assert _actions({"m": _WISH}, {}, removals={"a"}) == [Start("m")]
    assert _actions({"m": replace(_WISH, paused=True)}, {}, removals={"a"}) == [EndSession("a")], "it was reset"
    assert _actions({}, {}, removals={"a"}, ending={"a"}) == []


def test_a_mapping_with_that_client_id_stops_the_ending_and_starts_only_afterwards() -> None:
    assert _actions({"m": _WISH}, {}, removals={"a"}, ending={"a"}) == [KeepSession("a")]
    assert _actions({"m": _WISH}, {}, ending={"a"}) == [KeepSession("a")]
    assert _actions({"m": _WISH}, {}) == [Start("m")]


_IDS = st.sampled_from(["", "a", "b", "c"])
_NAMES = st.sampled_from(["m", "n", "o", "p"])
_WISHES = st.builds(Wanted, generation=st.integers(1, 3), paused=st.booleans(), client_id=_IDS)


def _unique(wanted: dict[str, Wanted]) -> dict[str, Wanted]:
    """The store lets no two mappings have one client id."""
    seen: set[str] = set()
    kept = {}
    for name, wish in wanted.items():
        if not wish.client_id or wish.client_id not in seen:
            kept[name] = wish
            seen.add(wish.client_id)
    return kept


_WANTED = st.dictionaries(_NAMES, _WISHES, max_size=4).map(_unique)


@dataclass
class _Life:
    generation: int
    state: State
    active: bool
    stopping: bool
    holds: frozenset[str]
    client_id: str


class _World:
    """Does what reconcile says, as the supervisor does, and holds the rules no step may break."""

    def __init__(self, removals: set[str]) -> None:
        self.lives: dict[str, _Life] = {}
        self.removals = removals
        self.ending: set[str] = set()
        self.wanted: dict[str, Wanted] = {}
        self.seen_failed: dict[str, int] = {}

    def step(self) -> list[Action]:
        # The store cancels a removal when a mapping takes the client id; that of a paused one is claimed at its start.
        running = {
            name: Running(life.generation, life.state, life.active, life.stopping, life.holds)
            for name, life in self.lives.items()
        }
        actions = _actions(self.wanted, running, set(self.removals), set(self.ending))
        kinds = [type(action) for action in actions]
        order = [Stop, Rest, Forget, KeepSession, EndSession, Start]
        first_start = kinds.index(Start) if Start in kinds else len(kinds)
        assert all(kind is Start for kind in kinds[first_start:])
        assert all(kind in order for kind in kinds)
        for action in actions:
            self._do(action)
        holders = [client_id for life in self.lives.values() if life.active for client_id in life.holds if client_id]
        assert len(holders) == len(set(holders)), "two active mappings hold one client id"
        assert not self.ending & set(holders), "a session is ended while it is in use"
        return actions

    def _do(self, action: Action) -> None:
        match action:
            case Stop(name):
                assert not self.lives[name].stopping
                self.lives[name].stopping = True
            case Rest(name):
                assert self.lives[name].state is State.FAILED
                self.lives[name].state = State.PAUSED
            case Forget(name):
                assert not self.lives[name].active
                del self.lives[name]
            case KeepSession(client_id):
                self.ending.remove(client_id)
            case EndSession(client_id):
                self.ending.add(client_id)
            case Start(name):
                wish, before = self.wanted[name], self.lives.get(name)
                assert before is None or not before.active
                if before is not None and before.state is State.FAILED:
                    assert before.generation != wish.generation
                self.lives[name] = _Life(
                    wish.generation, State.RUNNING, True, False, frozenset({wish.client_id}), wish.client_id
                )
                self.removals.discard(wish.client_id)

    def settle(self) -> None:
        """Everything that is under way ends."""
        for life in self.lives.values():
            if life.stopping and life.active:
                life.active, life.stopping, life.state = False, False, State.PAUSED
        self.removals -= self.ending
        self.ending.clear()

    def fail(self, name: str) -> None:
        life = self.lives.get(name)
        if life is not None and life.active:
            life.active, life.stopping, life.state = False, False, State.FAILED


_STEPS = st.lists(
    st.one_of(_WANTED, _NAMES, st.just("settle"), st.just("step"), st.sets(_IDS.filter(bool))), min_size=1, max_size=12
)


@settings(deadline=None, max_examples=300)
@given(history=_STEPS, final=_WANTED)
def test_whatever_happened_repeated_reconciling_leads_to_what_is_wanted(
    history: list[object], final: dict[str, Wanted]
) -> None:
    # A mapping has one client id per generation: whatever changes it raises the generation.
    wishes = [wanted for wanted in [*history, final] if isinstance(wanted, dict)]
    said = {(name, wish.generation, wish.client_id) for wanted in wishes for name, wish in wanted.items()}
    assume(len(said) == len({(name, generation) for name, generation, _ in said}))
    world = _World(set())
    for event in history:
        if isinstance(event, dict):
            world.wanted = event
        elif isinstance(event, set):
            world.removals |= event - {wish.client_id for wish in world.wanted.values()}
        elif event == "settle":
            world.settle()
        elif event != "step":
            world.fail(str(event))
        world.step()
    world.wanted = final
    for _ in range(6):
        world.step()
        world.settle()
    assert world.step() == []
    for name, wish in final.items():
        life = world.lives.get(name)
        if wish.paused:
            assert life is None or (not life.active and life.state is State.PAUSED)
        else:
            assert life is not None
            assert life.generation == wish.generation
            assert life.active or life.state is State.FAILED
    assert world.lives.keys() <= final.keys()
    claimed = {wish.client_id for wish in final.values()}
    assert world.removals <= claimed, "a session nobody wants is still there"


def test_what_is_queued_under_a_former_client_id_waits_for_its_own_mapping() -> None:
    paused_with_another_id = Wanted(2, paused=True, client_id="y")
    wanted = {"a": paused_with_another_id, "b": Wanted(1, paused=False, client_id="x")}
    owners = {"x": "a"}
    assert reconcile(wanted, {}, removals=(), ending=(), owners=owners) == []
    del wanted["a"]
    assert reconcile(wanted, {}, removals=(), ending=(), owners=owners) == [Start("b")]
