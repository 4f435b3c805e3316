"""Whether Kafka takes records, and if not, why: several causes may hold at once, one reason is told."""

from __future__ import annotations

from enum import IntEnum, auto
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from server.core.lifecycle import Reason


class Cause(IntEnum):
    """What can be wrong; the first of them explains the most, and is told."""

    START = auto()  # no producer could be started
    SENDS = auto()  # Kafka refused the last batch
    REACH = auto()  # no broker answers
    TOPIC = auto()  # a topic is missing or hidden
    STALL = auto()  # batches are not answered


class Condition:
    """Kafka's condition, told through `report` whenever it changes: a reason, or None while all is well."""

    def __init__(self, report: Callable[[Reason | None], None]) -> None:
        self._report = report
        self._causes: dict[Cause, Reason] = {}
        self._told: Reason | None = None
        self._silent = True

    def note(self, cause: Cause, reason: Reason | None) -> None:
        """Note that the cause holds, or with None that it does not."""
        if reason is None:
            self._causes.pop(cause, None)
        else:
            self._causes[cause] = reason

    def has(self, cause: Cause) -> bool:
        """Whether the cause holds."""
        return cause in self._causes

    def tell(self) -> None:
        """Report the condition if it is not what was reported last."""
        reason = self._causes[min(self._causes)] if self._causes else None
        if self._silent or reason != self._told:
            self._silent, self._told = False, reason
            self._report(reason)
