"""The health of the whole process, as the probes see it: plain facts, no judgement of what is healthy."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Stuck:
    """A mapping that is wanted running and has made no progress for too long."""

    mapping: str
    reason: str


@dataclass(frozen=True, slots=True)
class Health:
    """What the supervisor knows without asking the store or a broker.

    `waiting_for` says what keeps the process from starting, such as the store's lock held by another process.
    `store_error` is the last ping's failure. `not_running` names the mappings wanted running that are not RUNNING;
    `stuck` those among them, or behind with their oldest message, for so long that somebody should look.
    """

    started: bool
    supervisor_running: bool
    waiting_for: str | None = None
    store_error: str | None = None
    stuck: tuple[Stuck, ...] = ()
    not_running: tuple[str, ...] = ()
