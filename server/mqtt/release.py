"""QoS 2 on the receiving side: which packet ids are between PUBREC and PUBREL, and how many may be.

PUBRECs go out evenly: Mosquitto 2.0 searches its list of messages in flight for each one, past all those that wait
for PUBREL, so tens of thousands at once take it minutes. The next is written when an earlier one is released.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

import mqtt5

from server.core.acks import Fingerprint

if TYPE_CHECKING:
    from collections.abc import Sequence

    from server.mqtt.port import Message

MOST_UNRELEASED = 100


class Release:
    """The packet ids of one connection; `unreleased` are those of its session, which outlives it."""

    def __init__(self, unreleased: set[int]) -> None:
        self._unreleased = unreleased
        self._written: set[int] = set()
        self._withheld: deque[tuple[int, Fingerprint]] = deque()

    @property
    def withheld(self) -> Sequence[tuple[int, Fingerprint]]:
        """Packet ids whose PUBREC is due and not written yet, in order, and what was delivered under them."""
        return tuple(self._withheld)

    @property
    def is_empty(self) -> bool:
        """Whether every PUBREC that is due was written."""
        return not self._withheld

    def due(self, packet_id: int, message: Message) -> None:
        """The message is to be answered with PUBREC, after those that became due before."""
        self._withheld.append((packet_id, Fingerprint.of(message)))

    def pubrecs(self) -> bytes:
        """The packets to write now."""
        packets = []
        while self._withheld and len(self._written) < MOST_UNRELEASED:
            packet_id, _ = self._withheld.popleft()
            self._written.add(packet_id)
            self._unreleased.add(packet_id)
            packets.append(mqtt5.PubRecPacket(packet_id).write())
        return b"".join(packets)

    def pubcomp(self, packet_id: int) -> bytes:
        """The answer to PUBREL, which is always given (0x92 if the id is unknown; MQTT 5.0, 4.3.3)."""
        self._written.discard(packet_id)
        if packet_id in self._unreleased:
            self._unreleased.discard(packet_id)
            return mqtt5.PubCompPacket(packet_id).write()
        unknown = mqtt5.PubCompReasonCode.PACKET_ID_NOT_FOUND
        return mqtt5.PubCompPacket(packet_id, reason_code=unknown).write()

    def forget(self) -> None:
        """The broker has no session: nothing is between PUBREC and PUBREL."""
        self._unreleased.clear()
