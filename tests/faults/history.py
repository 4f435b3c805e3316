"""What a run of the fault programme recorded: plain data, which the checker judges and the report draws.

Times are seconds since the epoch, by the clock that Kafka's LogAppendTime, the wire tap and the load share. A mapping
is named by its label, such as "5/qos1", which is unique among all services of the run.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, TypeAlias

MessageId: TypeAlias = tuple[str, int]
"""MQTT topic, and the number of the message on that topic."""


@dataclass(slots=True)
class Publication:
    """A message given to the MQTT broker.

    `attempts` counts how often it was written: a publisher whose connection broke writes what was not confirmed again,
    and the broker may have taken each. `accepted_at` is None if the broker never confirmed it.
    """

    topic: str
    seq: int
    uuid: str
    sent_at: float
    attempts: int = 1
    accepted_at: float | None = None

    @property
    def id(self) -> MessageId:
        return self.topic, self.seq


@dataclass(frozen=True, slots=True)
class Stored:
    """A record in the Kafka topic of a mapping, or in its dead letter topic.

    `incarnation` counts how often the topic was deleted and created again before. What is not a message of the load
    has the number -1.
    """

    mapping: str
    topic: str
    seq: int
    uuid: str
    partition: int
    offset: int
    at: float
    incarnation: int = 0
    dead_letter: bool = False

    @property
    def id(self) -> MessageId:
        return self.topic, self.seq


@dataclass(slots=True)
class Delivery:
    """A PUBLISH that the broker sent to the service, as the tap passed it on."""

    at: float
    mapping: str
    connection: int
    packet_id: int
    qos: int
    duplicate: bool
    message: MessageId


@dataclass(slots=True)
class Ack:
    """A PUBACK or PUBREC, read from the service at `at` and passed on to the broker at `relayed_at`, if ever."""

    at: float
    mapping: str
    connection: int
    packet_id: int
    kind: Literal["PUBACK", "PUBREC"]
    relayed_at: float | None = None


@dataclass(frozen=True, slots=True)
class Ended:
    """A connection of the service that is gone."""

    at: float
    mapping: str
    connection: int


WireEvent: TypeAlias = Delivery | Ack | Ended


@dataclass(frozen=True, slots=True)
class MappingSample:
    """The status of one mapping at a moment."""

    mapping: str
    state: str
    reason: str | None
    received: int
    delivered: int
    dead_lettered: int
    dropped: int
    in_flight: int


@dataclass(frozen=True, slots=True)
class Answer:
    """What a probe said: an HTTP status, and its reasons; 0 if there was no answer."""

    status: int
    reasons: str = ""


@dataclass(frozen=True, slots=True)
class Sample:
    """One look at a service. `memory` is its private memory in bytes; without an answer `mappings` is empty."""

    at: float
    service: str
    ready: Answer
    forwarding: Answer
    memory: int | None
    mappings: tuple[MappingSample, ...] = ()


@dataclass(frozen=True, slots=True)
class Cost:
    """What a fault may cost.

    `repeats`: "none"; "connection", what the connections that ended had unacknowledged; or "flight", besides that, what
    was in flight when a producer may have been given up. `attaches` says that over MQTT 5 a redelivery has to be
    attached to what Kafka did not have yet when the connection ended. `blames` are the prefixes of the reasons that
    explain it. `away` services don't answer until they are back; `unready` ones must say so. Without `stalls` messages
    have to flow all the time. With `unread` the broker reads nothing: what was passed on to it does not count as known.
    """

    repeats: Literal["none", "connection", "flight"] = "none"
    attaches: bool = False
    blames: tuple[str, ...] = ()
    away: bool = False
    unready: bool = False
    stalls: bool = True
    unread: bool = False


@dataclass(slots=True)
class Fault:
    """A fault that was done, from `begin` to `end`, when it was undone; it may show until the next begins."""

    name: str
    begin: float
    end: float
    cost: Cost


@dataclass(frozen=True, slots=True)
class Excuse:
    """Messages that may be missing for a reason outside the service.

    Those that the broker accepted (`of` "accepted"), or that the service had, delivered and not acknowledged
    ("in flight"), at any moment from `since` to `until`; of every mapping if `mapping` is None.
    """

    why: str
    of: Literal["accepted", "in flight"]
    since: float
    until: float
    mapping: str | None = None

    def covers(self, mapping: str, since: float, until: float) -> bool:
        """Whether it is about this mapping and any moment of this span."""
        return self.mapping in {None, mapping} and since <= self.until and until >= self.since


@dataclass(frozen=True, slots=True)
class Exit:
    """The end of a service that was sent SIGTERM at `at`."""

    at: float
    service: str
    seconds: float
    code: int


@dataclass(slots=True)
class History:
    """Everything recorded in one run.

    `services` names the mappings of each service. `dropped_by_rule` says how many messages of a mapping the service
    counted as dropped with a reason that the run expects. `memory_limit` is in bytes, per service. `tracebacks` are
    crashes of the service's own code, also those it survived.
    """

    name: str
    seed: int
    begin: float
    end: float
    services: dict[str, tuple[str, ...]]
    memory_limit: int
    publications: list[Publication] = field(default_factory=list)
    records: list[Stored] = field(default_factory=list)
    wire: list[WireEvent] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    excuses: list[Excuse] = field(default_factory=list)
    exits: list[Exit] = field(default_factory=list)
    dropped_by_rule: dict[str, int] = field(default_factory=dict)
    tracebacks: list[str] = field(default_factory=list)

    @property
    def mappings(self) -> list[str]:
        """Every mapping of every service."""
        return [mapping for mappings in self.services.values() for mapping in mappings]

    def fault_at(self, at: float) -> Fault | None:
        """The latest fault that had begun by then."""
        return max((each for each in self.faults if each.begin <= at), key=lambda each: each.begin, default=None)

    def since(self, at: float) -> float:
        """A moment, in seconds since the run began."""
        return round(at - self.begin, 2)

    def clock(self, at: float) -> str:
        """A moment, as seconds since the run began."""
        return f"{at - self.begin:.2f} s"


@dataclass(frozen=True, slots=True)
class Violation:
    """An invariant of design.md that did not hold; `invariant` is 0 for what the probes and reasons promise."""

    invariant: int
    what: str

    def __str__(self) -> str:
        title = f"invariant {self.invariant}" if self.invariant else "probes and reasons"
        return f"{title}: {self.what}"
