"""The port of the MQTT side: what a connection offers, whichever protocol it speaks.

A connection reads, acknowledges and ends; it knows nothing of Kafka. Calls to the Receiver are plain calls from the
event loop: the reader never blocks and never awaits.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from server.core.acks import Delivery

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Sequence

    from server.core.acks import Fingerprint
    from server.core.connections import MqttConnection
    from server.core.lifecycle import Reason
    from server.core.subscription import Subscription, WireProtocol

# What a message costs beside its bytes: the objects that hold it.
MESSAGE_OVERHEAD_BYTES = 400


class Message(Delivery, Protocol):
    """A message as received."""

    @property
    def duplicate(self) -> bool:
        """Whether the broker marks it as a redelivery (DUP)."""

    @property
    def subscription_ids(self) -> list[int]:
        """The identifiers of the subscriptions it came through; empty without identifiers."""


@dataclass(frozen=True, slots=True)
class Granted:
    """What the broker granted in its CONNACK. `session_expiry` is seconds, None where the protocol has none."""

    protocol: WireProtocol
    session_present: bool
    client_id: str
    session_expiry: int | None
    subscription_identifiers: bool


@dataclass(frozen=True, slots=True)
class Ended:
    """Why a connection ended, or never came to be.

    `malformed` holds the first bytes of a packet that can't be decoded. `version_refused` says the broker does not
    speak this protocol version; `silent` that it closed before it sent a byte; `unexplained` that it closed an
    established connection without a word. `unheard_seconds` is for how long nothing had come from the broker, if that
    is why it ended.
    """

    reason: Reason
    takeover: bool = False
    malformed: bytes | None = None
    version_refused: bool = False
    silent: bool = False
    unexplained: bool = False
    unheard_seconds: float = 0.0


class ConnectionEndedError(Exception):
    """The connection is gone, or could not be made."""

    def __init__(self, ended: Ended) -> None:
        super().__init__(ended.reason.detail)
        self.ended = ended


class SubscriptionRefusedError(Exception):
    """The broker refused a filter; the connection is still there."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason.detail)
        self.reason = reason


@dataclass(slots=True)
class SessionRequest:
    """What to ask for when connecting.

    `unreleased` are the QoS 2 packet ids with PUBREC written and PUBREL not seen. They belong to the session, so the
    set lives as long as it and each connection works on it.
    """

    broker: MqttConnection
    client_id: str
    clean_start: bool
    session_expiry: int
    receive_maximum: int
    unreleased: set[int] = field(default_factory=set)


class Receiver(Protocol):
    """Who takes what a connection reads."""

    def connected(self, connection: Connection) -> None:
        """The broker accepted; called before any message is handed over."""

    def received(self, messages: Sequence[Message], size: int) -> None:
        """Messages in receive order that hold `size` bytes; a read may bring them in several parts."""

    def all_received(self) -> None:
        """All messages of a read, if there were any, are handed over."""

    def discarded(self, messages: Sequence[Message]) -> None:
        """Messages that came while the connection is left; they are never acknowledged."""

    def receiving(self, size: int) -> None:
        """A packet larger than a read is on its way; so many bytes of it are held already."""


class Connection(Protocol):
    """One MQTT connection of a session."""

    @property
    def granted(self) -> Granted:
        """What the broker granted."""

    @property
    def is_open(self) -> bool:
        """Whether acknowledgements can still be written."""

    @property
    def ended(self) -> asyncio.Future[Ended]:
        """Done as soon as the connection is gone, for whatever reason."""

    def acknowledge(self, messages: Sequence[Message]) -> None:
        """Write PUBACK or PUBREC for these, in this order; only while the connection is open."""

    def when_processed(self, call: Callable[[], None]) -> None:
        """Call once the broker has shown that it processed everything that was written so far (PINGRESP)."""

    @property
    def withheld(self) -> Sequence[tuple[int, Fingerprint]]:
        """Packet ids whose acknowledgement was asked for and is not written yet, and what they delivered."""

    def rest(self, seconds: float, then: Callable[[], None]) -> None:
        """Leave bytes in the socket for so long, so that more are read together; then call, and read again."""

    def pause_reading(self) -> None:
        """Leave bytes in the socket, so that the broker feels the back-pressure."""

    def resume_reading(self) -> None:
        """Read again."""

    async def subscribe(self, subscriptions: Sequence[Subscription]) -> dict[str, int]:
        """Subscribe, and return the QoS granted per filter.

        Raises:
            SubscriptionRefusedError: the broker refused a filter.
            ConnectionEndedError: the connection is gone.
        """

    async def unsubscribe(self, filters: Sequence[str]) -> None:
        """Unsubscribe.

        Raises:
            ConnectionEndedError: the connection is gone.
        """

    async def leave(self, patience: float = ...) -> None:
        """Leave so that the broker has seen every acknowledgement, without ending the session (design.md, 4).

        The broker gets `patience` seconds to show that.
        """

    def abort(self) -> None:
        """Close at once."""


class Connector(Protocol):
    """Makes connections of one protocol."""

    async def connect(self, request: SessionRequest, receiver: Receiver) -> Connection:
        """Connect within a limited time.

        Raises:
            ConnectionEndedError: it could not be made.
        """
