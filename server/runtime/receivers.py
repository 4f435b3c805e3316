"""Who takes what a connection of a session reads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from server.mqtt.port import Connection, Message
    from server.runtime.intake import Intake


class Nobody:
    """Takes nothing: a session that is ended has no messages."""

    def connected(self, connection: Connection) -> None:
        """Nothing to prepare."""

    def received(self, messages: Sequence[Message], size: int) -> None:
        """Nothing is taken, nothing acknowledged."""

    def all_received(self) -> None:
        """Nothing was."""

    def discarded(self, messages: Sequence[Message]) -> None:
        """The same."""

    def receiving(self, size: int) -> None:
        """Nothing is held."""


class Discarding(Nobody):
    """Takes nothing yet: what the broker keeps comes again on a later connection of this session."""

    def __init__(self, intake: Intake) -> None:
        self._intake = intake

    def received(self, messages: Sequence[Message], size: int) -> None:
        """Only what the broker does not keep counts."""
        del size
        self.discarded(messages)

    def discarded(self, messages: Sequence[Message]) -> None:
        """The same."""
        self._intake.discarded(messages, durable=True)


@dataclass(slots=True)
class Reading:
    """Takes everything; `begun` hears of the connection before any message. The broker keeps a `durable` session."""

    intake: Intake
    begun: Callable[[Connection], None]
    durable: bool

    def connected(self, connection: Connection) -> None:
        """Prepare for its messages."""
        self.begun(connection)

    def received(self, messages: Sequence[Message], size: int) -> None:
        """Take them in."""
        self.intake.received(messages, size)

    def all_received(self) -> None:
        """See how to go on."""
        self.intake.all_received()

    def discarded(self, messages: Sequence[Message]) -> None:
        """Account for what comes while leaving."""
        self.intake.discarded(messages, durable=self.durable)

    def receiving(self, size: int) -> None:
        """Make room for a large message that is on its way."""
        self.intake.receiving(size)
