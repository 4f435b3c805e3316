"""What a session is subscribed to, as its row in the store remembers it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

WireProtocol = Literal["5", "3.1.1"]


@dataclass(frozen=True, slots=True)
class Subscription:
    """One topic filter of a session; `identifier` is None where the broker or the protocol has none."""

    topic_filter: str
    qos: int
    identifier: int | None = None


@dataclass(frozen=True, slots=True)
class Session:
    """One MQTT session that exists, or may exist, in the broker.

    `subscriptions` is the union of what was asked for and not yet known to be gone. `established` says that a
    CONNACK was seen, so that a session that is absent later was lost and is not merely new. `held_qos2` stays set
    once QoS 2 was subscribed over MQTT 5: such a session must not be resumed over 3.1.1, where paho loses it.
    `removal_pending` asks for it to be ended at the broker; `clean_start` asks the next connection to begin afresh.
    """

    client_id: str
    mapping: str
    protocol: WireProtocol | None = None
    subscriptions: tuple[Subscription, ...] = ()
    established: bool = False
    held_qos2: bool = False
    removal_pending: bool = False
    clean_start: bool = False

    def ended(self) -> Session:
        """The same row after the session is known not to exist in the broker."""
        return replace(self, subscriptions=(), established=False, held_qos2=False, clean_start=False)
