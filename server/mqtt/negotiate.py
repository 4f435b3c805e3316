"""Which protocol version to speak: `auto` prefers MQTT 5 and falls back to 3.1.1 only on proof.

Proof is CONNACK 0x84, or the CONNACK of a 3.1.1 broker (`20 02 00 01`). Brokers that close without a byte are tried
over 3.1.1 once after three such closes, if MQTT 5 never worked for this client id.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from server.core.connections import Protocol
    from server.core.subscription import WireProtocol
    from server.mqtt.port import Ended

SILENT_CLOSES_BEFORE_FALLBACK = 3


class Negotiation:
    """The choice for one session."""

    def __init__(self, wanted: Protocol, *, worked_over: WireProtocol | None) -> None:
        self._wanted = wanted
        self._five_worked = worked_over == "5"
        self._silent_closes = 0
        self._choice: WireProtocol = "5" if wanted == "auto" else wanted

    @property
    def choice(self) -> WireProtocol:
        """The protocol of the next attempt."""
        return self._choice

    def accepted(self) -> None:
        """The broker accepted the chosen protocol."""
        self._silent_closes = 0
        if self._choice == "5":
            self._five_worked = True

    def prefer_five(self) -> None:
        """The session can't be used over 3.1.1: try MQTT 5 again, if that is allowed."""
        if self._wanted == "auto":
            self._choice = "5"

    def refused(self, ended: Ended) -> bool:
        """The attempt failed; True if the next one speaks another protocol and need not wait."""
        if self._wanted != "auto":
            return False
        if self._choice == "3.1.1":
            # One attempt only: without an answer, or when even 3.1.1 is refused, MQTT 5 is as likely.
            if ended.version_refused or ended.silent:
                self._choice = "5"
            return False
        if ended.version_refused:
            self._choice = "3.1.1"
            return True
        self._silent_closes = self._silent_closes + 1 if ended.silent else 0
        if self._silent_closes >= SILENT_CLOSES_BEFORE_FALLBACK and not self._five_worked:
            self._silent_closes = 0
            self._choice = "3.1.1"
            return True
        return False
