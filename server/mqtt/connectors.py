"""What connects, by version of the protocol."""

from __future__ import annotations

import asyncio
from importlib import import_module
from typing import TYPE_CHECKING, Any

from server.mqtt import v5
from server.mqtt.dial import Dialer

if TYPE_CHECKING:
    from collections.abc import Mapping

    from server.core.subscription import WireProtocol
    from server.mqtt.port import Connection, Connector, Receiver, SessionRequest


class _Connector311:
    """Connects over MQTT 3.1.1, and loads what that needs only then: 6 MB, which a broker that speaks 5 spares us."""

    def __init__(self, dialer: Dialer) -> None:
        self._dialer = dialer
        self._connector: Any = None

    async def connect(self, request: SessionRequest, receiver: Receiver) -> Connection:
        """Connect within a limited time.

        Raises:
            ConnectionEndedError: it could not be made.
        """
        if self._connector is None:
            v311 = await asyncio.to_thread(import_module, "server.mqtt.v311")
            self._connector = self._connector or v311.Connector(self._dialer)
        connection: Connection = await self._connector.connect(request, receiver)
        return connection


def connectors() -> Mapping[WireProtocol, Connector]:
    """A connector for each version, for one event loop."""
    dialer = Dialer()
    return {"5": v5.Connector(dialer), "3.1.1": _Connector311(dialer)}
