"""What a session is subscribed to, as its row in the store remembers it, and how to get to what is wanted."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from server.core.topics import any_overlap, matches

if TYPE_CHECKING:
    from collections.abc import Sequence

WireProtocol = Literal["5", "3.1.1"]


@dataclass(frozen=True, slots=True)
class Subscription:
    """One topic filter of a session; `identifier` is None where the broker or the protocol has none.

    `qos` is what was asked for, `granted` what the broker gave, None until it has answered.
    """

    topic_filter: str
    qos: int
    identifier: int | None = None
    granted: int | None = None


@dataclass(frozen=True, slots=True)
class Session:
    """One MQTT session that exists, or may exist, in the broker.

    `subscriptions` is the union of what was asked for and not yet known to be gone. `established` says that a
    CONNACK was seen, so that a session that is absent later was lost and is not merely new. `held_qos2` stays set
    once QoS 2 was subscribed over MQTT 5: such a session must not be resumed over 3.1.1, where paho loses it.
    `removal_pending` asks for it to be ended at the broker; `clean_start` asks the next connection to begin afresh.
    `last_identifier` is the highest subscription identifier ever used: none is used twice, because messages that
    were queued under it may still come.
    """

    client_id: str
    mapping: str
    protocol: WireProtocol | None = None
    subscriptions: tuple[Subscription, ...] = ()
    established: bool = False
    held_qos2: bool = False
    removal_pending: bool = False
    clean_start: bool = False
    last_identifier: int = 0

    def ended(self) -> Session:
        """The same row after the session is known not to exist in the broker."""
        return replace(self, subscriptions=(), established=False, held_qos2=False, clean_start=False, last_identifier=0)


@dataclass(frozen=True, slots=True)
class SubscriptionPlan:
    """The way from what a session has to what is wanted: SUBSCRIBE first, then UNSUBSCRIBE.

    `during` is what the row must hold before the first packet is sent.
    """

    subscribe: tuple[Subscription, ...]
    unsubscribe: tuple[str, ...]
    during: Session
    wanted: tuple[str, ...]

    @property
    def is_empty(self) -> bool:
        """Whether the session has what is wanted."""
        return not self.subscribe and not self.unsubscribe

    def reached(self, granted: dict[str, int]) -> Session:
        """The row once everything is acknowledged, with the QoS granted per filter."""
        return replace(
            self.during,
            subscriptions=tuple(
                replace(subscription, granted=granted.get(subscription.topic_filter, subscription.granted))
                for subscription in self.during.subscriptions
                if subscription.topic_filter in self.wanted
            ),
        )


def plan_subscriptions(
    session: Session, filters: Sequence[str], *, qos: int, protocol: WireProtocol, identifiers: bool
) -> SubscriptionPlan:
    """Plan how the session gets to these filters at this QoS.

    Overlapping filters get identifiers where the broker has them (`identifiers`). An identifier stays with its
    filter, and a newer filter has a higher one.
    """
    current = {subscription.topic_filter: subscription for subscription in session.subscriptions}
    identify = identifiers and any_overlap(filters)
    last = session.last_identifier
    subscribe: list[Subscription] = []
    for topic_filter in filters:
        had = current.get(topic_filter)
        identifier = had.identifier if had else None
        if identify and identifier is None:
            last += 1
            identifier = last
        if not identifiers:
            identifier = None
        if had is None or (had.qos, had.identifier) != (qos, identifier) or had.granted is None:
            current[topic_filter] = Subscription(topic_filter, qos, identifier)
            subscribe.append(current[topic_filter])
    during = replace(
        session,
        protocol=protocol,
        subscriptions=tuple(current.values()),
        established=True,
        clean_start=False,
        held_qos2=session.held_qos2 or (protocol == "5" and qos == 2),  # noqa: PLR2004 - QoS 2 has no other name
        last_identifier=last,
    )
    gone = tuple(topic_filter for topic_filter in current if topic_filter not in filters)
    return SubscriptionPlan(tuple(subscribe), gone, during, tuple(filters))


class CopyFilter:
    """Tells extra copies of a message that matches several filters (design.md, 10).

    The broker may send one copy per filter, each with the identifier of its subscription. One is forwarded: that of
    the oldest matching filter. A copy with an identifier that is no longer in use was queued for a filter that is
    gone, perhaps before any other was subscribed, so it is always forwarded: a repeat is allowed, a loss never. For the
    same reason a filter that the broker has not granted (yet) takes no copy from another, nor a newer from an older.
    """

    def __init__(self, subscriptions: Sequence[Subscription]) -> None:
        self._in_use = {subscription.identifier for subscription in subscriptions} - {None}
        self._granted = sorted(
            (subscription.identifier, subscription.topic_filter)
            for subscription in subscriptions
            if subscription.identifier is not None and subscription.granted is not None
        )

    def __bool__(self) -> bool:
        """Whether there can be extra copies."""
        return len(self._in_use) > 1

    def is_extra(self, topic: str, identifiers: Sequence[int]) -> bool:
        """Whether another copy of this message is the one to forward."""
        if not identifiers or not self._in_use.issuperset(identifiers):
            return False
        first = next((identifier for identifier, wanted in self._granted if matches(wanted, topic)), None)
        return first is not None and first < min(identifiers)
