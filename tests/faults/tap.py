"""The tap in the MQTT proxy: records deliveries and acknowledgements, and speaks in the broker's place."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from tests.faults import packets
from tests.faults.history import Ack, Delivery, Ended
from tests.faults.load import identify
from tests.faults.packets import Framer
from tests.faults.proxy import Direction, Parcel

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tests.faults.history import MessageId, WireEvent
    from tests.faults.packets import Connect
    from tests.faults.proxy import Link

_KINDS: dict[int, Literal["PUBACK", "PUBREC"]] = {packets.PUBACK: "PUBACK", packets.PUBREC: "PUBREC"}
_KIND_OF_QOS = {1: "PUBACK", 2: "PUBREC"}
MQTT_5, MQTT_311 = 5, 4


class WireTap:
    """What all connections of a run said. `mappings` are the labels by client id; others are passed and not recorded.

    While `refusals` has a code for a version, every CONNECT of that version is answered with it.
    """

    def __init__(self, mappings: Mapping[str, str]) -> None:
        self.events: list[WireEvent] = []
        self.refusals: dict[int, int] = {}
        self.refused = 0
        self.latest_acknowledged: dict[str, MessageId] = {}
        self.subscribed_at: dict[str, float] = {}
        self.connected: dict[str, LinkTap] = {}
        self.connections = 0
        self._mappings = mappings

    def on(self, link: Link) -> LinkTap:
        """Tap a new link."""
        self.connections += 1
        return LinkTap(self, link, self.connections)

    def label(self, client_id: str) -> str | None:
        """Which mapping connects with this client id."""
        return self._mappings.get(client_id)

    def held(self, mapping: str) -> int:
        """How many acknowledgements were read from a mapping and not passed on to the broker."""
        tap = self.connected.get(mapping)
        return tap.held if tap else 0

    def disconnect(self, code: int) -> None:
        """Send DISCONNECT to every service in the broker's place; over 3.1.1, which has none, only close."""
        for tap in list(self.connected.values()):
            tap.disconnect(code)


class LinkTap:
    """The tap of one connection."""

    def __init__(self, wire: WireTap, link: Link, number: int) -> None:
        self._wire = wire
        self._link = link
        self._number = number
        self._framers = {direction: Framer() for direction in Direction}
        self._connect: Connect | None = None
        self._mapping: str | None = None
        self._open: dict[tuple[str, int], MessageId] = {}
        self.held = 0

    def heard(self, direction: Direction, data: bytes) -> Parcel | None:
        """Record whole packets, and pass them on together."""
        found = self._framers[direction].feed(data)
        if not found:
            return None
        if direction is Direction.UP:
            return self._from_service(found)
        return self._from_broker(found)

    def ended(self) -> None:
        """Either end is gone."""
        if self._mapping is not None:
            self._wire.events.append(Ended(time.time(), self._mapping, self._number))
            if self._wire.connected.get(self._mapping) is self:
                del self._wire.connected[self._mapping]

    def disconnect(self, code: int) -> None:
        """Say DISCONNECT as the broker would."""
        assert self._connect is not None
        self._link.say(packets.disconnect(code) if self._connect.level == MQTT_5 else b"")

    def _from_service(self, found: list[bytes]) -> Parcel | None:
        acks: list[Ack] = []
        for packet in found:
            kind = packets.kind(packet)
            if kind == packets.CONNECT:
                self._connect = packets.parse_connect(packet)
                if self._connect.level in self._wire.refusals:
                    self._wire.refused += 1
                    self._link.say(packets.connack(self._connect.level, self._wire.refusals[self._connect.level]))
                    return None
                self._mapping = self._wire.label(self._connect.client_id)
                if self._mapping is not None:
                    self._wire.connected[self._mapping] = self
            elif kind in _KINDS and self._mapping is not None:
                ack = Ack(time.time(), self._mapping, self._number, packets.parse_packet_id(packet), _KINDS[kind])
                acks.append(ack)
                message = self._open.pop((ack.kind, ack.packet_id), None)
                if message is not None:
                    self._wire.latest_acknowledged[self._mapping] = message
        self._wire.events += acks
        self.held += len(acks)
        return _Acks(b"".join(found), self, acks)

    def _from_broker(self, found: list[bytes]) -> Parcel:
        deliveries: list[Delivery] = []
        if self._connect is not None and self._mapping is not None:
            for packet in found:
                kind = packets.kind(packet)
                if kind == packets.SUBACK:
                    self._wire.subscribed_at[self._mapping] = time.time()
                elif kind == packets.PUBLISH:
                    message = packets.parse_publish(packet, self._connect.level)
                    if message.qos:
                        name = identify(message.payload)[0]
                        self._open[_KIND_OF_QOS[message.qos], message.packet_id] = name
                        deliveries.append(
                            Delivery(
                                0.0,
                                self._mapping,
                                self._number,
                                message.packet_id,
                                message.qos,
                                message.duplicate,
                                name,
                            )
                        )
        return _Deliveries(b"".join(found), self._wire, deliveries)


@dataclass(slots=True)
class _Acks(Parcel):
    tap: LinkTap
    acks: list[Ack]

    def arrived(self) -> None:
        """The broker's socket has them."""
        now = time.time()
        for ack in self.acks:
            ack.relayed_at = now
        self.tap.held -= len(self.acks)


@dataclass(slots=True)
class _Deliveries(Parcel):
    wire: WireTap
    deliveries: list[Delivery]

    def leaves(self) -> None:
        """The service may answer from now on."""
        now = time.time()
        for delivery in self.deliveries:
            delivery.at = now
        self.wire.events += self.deliveries
