"""AckWindow: which messages may be acknowledged, and in which order.

The unit is an Arrival: the messages of one read from the socket. Its parts (one per partition, usually) are confirmed
by Kafka in any order; arrivals become due strictly in the order received, as MQTT-4.6.0-2 asks, so bookkeeping costs
per read and not per message.

The window outlives connections. What a lost connection left unacknowledged still goes to Kafka, and the broker will
redeliver it: such a redelivery may be attached to the earlier delivery instead of being produced again, under the
conditions of `claim`.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from hashlib import blake2b
from itertools import takewhile
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

# What a remembered delivery costs: the entry, its digest, its share of the table.
CANDIDATE_BYTES = 300


class Delivery(Protocol):
    """What the window needs to know of a message."""

    @property
    def topic(self) -> str:
        """The MQTT topic."""

    @property
    def payload(self) -> bytes:
        """The payload."""

    @property
    def qos(self) -> int:
        """The QoS it was delivered with."""

    @property
    def packet_id(self) -> int | None:
        """The packet id; None at QoS 0."""


M = TypeVar("M", bound=Delivery)


@dataclass(slots=True, eq=False)
class Arrival(Generic[M]):
    """Messages that arrived together on one connection, at `at` seconds by the caller's clock.

    `open_parts` counts what Kafka has not confirmed yet. `kept` says that the broker has a copy of them (but of those
    at QoS 0) and would send them again. `inherits` says that some of them only repeat what an earlier arrival brought.
    """

    messages: Sequence[M]
    size: int
    at: float
    kept: bool = True
    open_parts: int = 1  # the caller's own hold, until every part is handed over
    inherits: bool = False
    heirs: list[Arrival[M]] = field(default_factory=list)


@dataclass(slots=True, frozen=True)
class Fingerprint:
    """What tells one delivery from another, without its payload."""

    topic: str
    qos: int
    digest: bytes

    @classmethod
    def of(cls, message: Delivery) -> Fingerprint:
        """The fingerprint of a message."""
        return cls(message.topic, message.qos, blake2b(message.payload, digest_size=16).digest())


@dataclass(slots=True, frozen=True)
class _Candidate(Generic[M]):
    arrival: Arrival[M]
    fingerprint: Fingerprint


class AckWindow(Generic[M]):
    """The messages of one MQTT session between their receipt and their acknowledgement."""

    def __init__(self) -> None:
        self._order: deque[Arrival[M]] = deque()
        self._candidates: dict[int, _Candidate[M]] = {}
        self._orphans: set[Arrival[M]] = set()
        self.held = 0

    @property
    def candidates(self) -> int:
        """How many earlier deliveries a redelivery could be attached to."""
        return len(self._candidates)

    @property
    def is_empty(self) -> bool:
        """Whether nothing waits for Kafka or for its acknowledgement."""
        return not self._order and not self._orphans

    @property
    def oldest_pending(self) -> float | None:
        """When the oldest message that waits for Kafka arrived; None if none waits."""
        first = next((arrival.at for arrival in self._order if arrival.open_parts), None)
        return min((arrival.at for arrival in self._orphans), default=first)

    @property
    def oldest_packet_id(self) -> int | None:
        """The packet id of the oldest message on this connection that is not due for acknowledgement."""
        ids = (message.packet_id for arrival in self._order for message in arrival.messages)
        return next((packet_id for packet_id in ids if packet_id is not None), None)

    @property
    def candidate_ids(self) -> Collection[int]:
        """The packet ids of earlier deliveries that a redelivery could be attached to."""
        return self._candidates.keys()

    def arrive(self, messages: Sequence[M], size: int, at: float, *, kept: bool = True) -> Arrival[M]:
        """Take in messages that hold `size` bytes; the caller owns one part, and ends it with `confirm`."""
        arrival = Arrival(messages, size, at, kept)
        self._order.append(arrival)
        self.held += size
        return arrival

    def confirm(self, arrival: Arrival[M]) -> None:
        """One part of the arrival is in Kafka (or its dead letter topic, or dropped by rule)."""
        waiting = [arrival]
        while waiting:
            current = waiting.pop()
            current.open_parts -= 1
            if current.open_parts == 0:
                waiting += current.heirs
                current.heirs = []
                if current in self._orphans:
                    self._orphans.discard(current)
                    self.held -= current.size

    def due(self) -> list[Arrival[M]]:
        """The arrivals that may be acknowledged now, in receive order; they leave the window."""
        due = []
        order = self._order
        while order and order[0].open_parts == 0:
            arrival = order.popleft()
            self.held -= arrival.size
            due.append(arrival)
        return due

    def confirmed_prefix(self, unconfirmed: Iterable[Delivery]) -> list[M]:
        """The messages before the first of the `unconfirmed`; they leave the window.

        Only once nothing more will be confirmed: meanwhile whole arrivals are due, which costs less.
        """
        waiting = {id(message) for message in unconfirmed}
        prefix: list[M] = []
        for arrival in self._order:
            if arrival.open_parts and arrival.inherits:
                break
            confirmed = list(takewhile(lambda message: id(message) not in waiting, arrival.messages))
            prefix += confirmed
            if len(confirmed) < len(arrival.messages):
                arrival.messages = arrival.messages[len(confirmed) :]
                break
            arrival.messages = ()
        return prefix

    def connection_lost(self, *, takeover: bool, withheld: Iterable[tuple[int, Fingerprint]] = ()) -> None:
        """The connection ended: none of its acknowledgements can be written any more.

        `withheld` are packet ids and fingerprints of what was due and handed out, but not written either.

        After a takeover another client may have held the session, so no redelivery may be attached to what it
        left, nor to anything before.
        """
        confirmed: Arrival[M] = Arrival((), 0, 0.0, open_parts=0)  # of `withheld`
        for packet_id, fingerprint in withheld:
            self._candidates[packet_id] = _Candidate(confirmed, fingerprint)
        for arrival in self._order:
            for message in arrival.messages:
                if message.packet_id is not None:
                    self._candidates[message.packet_id] = _Candidate(arrival, Fingerprint.of(message))
            arrival.messages = ()
            if arrival.open_parts:
                self._orphans.add(arrival)
            else:
                self.held -= arrival.size
        self._order.clear()
        if takeover:
            self.forget_candidates()

    def forget_candidates(self) -> None:
        """The packet ids of the past prove nothing (any more): attach nothing to it."""
        self._candidates.clear()

    def session_lost(self) -> None:
        """The broker has no copy of anything any more."""
        self.forget_candidates()
        for arrival in self._orphans:
            arrival.kept = False

    def given_up(self, unconfirmed: Iterable[tuple[Arrival[Any], Delivery]]) -> None:
        """Nothing more will be produced of the `unconfirmed`: a redelivery may be attached only to the others."""
        waiting = {(id(arrival), message.packet_id) for arrival, message in unconfirmed}
        confirmed: Arrival[M] = Arrival((), 0, 0.0, open_parts=0)
        kept: dict[int, _Candidate[M]] = {}
        for packet_id, candidate in self._candidates.items():
            arrival = candidate.arrival
            if not arrival.open_parts:
                kept[packet_id] = candidate
            elif not arrival.inherits and (id(arrival), packet_id) not in waiting:
                kept[packet_id] = _Candidate(confirmed, candidate.fingerprint)
        self._candidates = kept
        for arrival in self._orphans:
            self.held -= arrival.size
        self._orphans.clear()

    def claim(self, message: M) -> Arrival[M] | None:
        """The earlier delivery that this redelivery (DUP = 1, session present = 1) repeats, or None.

        Packet id, topic, payload and QoS must equal those of a delivery whose acknowledgement was never written, and
        each delivery is claimed once: when in doubt a message is produced again. Only for a broker whose packet ids
        mean something across connections (core/numbering.py).
        """
        if message.packet_id is None:
            return None
        candidate = self._candidates.get(message.packet_id)
        if candidate is None or candidate.fingerprint != Fingerprint.of(message):
            return None
        del self._candidates[message.packet_id]
        return candidate.arrival

    @staticmethod
    def inherit(arrival: Arrival[M], origin: Arrival[M]) -> None:
        """Make `arrival` wait for `origin`, whose messages it repeats."""
        if origin.open_parts and arrival not in origin.heirs:
            origin.heirs.append(arrival)
            arrival.open_parts += 1
            arrival.inherits = True
