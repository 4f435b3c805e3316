"""How brokers give packet ids to the messages of a session: what the protocol leaves open, and some do all the same."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

IDS = 65_535


@dataclass(eq=False)
class Outgoing:
    """A message that was sent under a packet id, and not yet acknowledged to the end."""

    number: int
    packet_id: int
    sent: bool = False
    released: bool = False  # QoS 2: PUBREC came, PUBREL is what has to be sent


class Policy(ABC):
    """How a broker gives packet ids to the messages of one session."""

    window: int = 1_000

    @abstractmethod
    def next_id(self, used: Collection[int]) -> int:
        """The id of a message that is sent for the first time; `used` are those in flight."""

    def resumed(self, in_flight: Sequence[Outgoing]) -> None:  # noqa: B027 - most keep the ids
        """A connection begins, and with it what is in flight is sent again."""

    def forget(self) -> None:  # noqa: B027 - some know nothing between messages
        """The session is lost; the next one begins anew."""


class CountsUp(Policy):
    """Ids are counted up through a session, and kept when a message is sent again: Mosquitto, EMQX."""

    def __init__(self, last: int = 0, window: int = 1_000) -> None:
        self._last = last
        self.window = window

    def next_id(self, used: Collection[int]) -> int:
        self._last = self._last % IDS + 1
        while self._last in used:
            self._last = self._last % IDS + 1
        return self._last

    def forget(self) -> None:
        self._last = 0


class SmallestFree(Policy):
    """The smallest free id, used again at once; kept when a message is sent again: HiveMQ."""

    def __init__(self, window: int = 50) -> None:
        self.window = window

    def next_id(self, used: Collection[int]) -> int:
        return next(each for each in range(1, IDS + 1) if each not in used)


class Afresh(CountsUp):
    """Every connection numbers from 1, redeliveries included: RabbitMQ."""

    def resumed(self, in_flight: Sequence[Outgoing]) -> None:
        self._last = 0
        for each in in_flight:
            each.packet_id = self.next_id(())


class CountsOn(CountsUp):
    """Ids are counted up through a session, and what is sent again gets the next ones: AWS says ids may change."""

    def resumed(self, in_flight: Sequence[Outgoing]) -> None:
        for each in in_flight:
            if not each.released:  # QoS 2: an id is bound until PUBCOMP
                each.packet_id = self.next_id(())


class KeepsButStartsAgain(CountsUp):
    """What is sent again keeps its id; new messages are numbered from 1 on every connection."""

    def resumed(self, in_flight: Sequence[Outgoing]) -> None:
        del in_flight
        self._last = 0
