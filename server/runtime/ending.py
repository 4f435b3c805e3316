"""Ending an MQTT session at the broker, with everything it has queued there (design.md, 3)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from server.mqtt.negotiate import SILENT_CLOSES_BEFORE_FALLBACK, Negotiation
from server.mqtt.port import ConnectionEndedError, SessionRequest
from server.runtime.receivers import Nobody

if TYPE_CHECKING:
    from server.core.subscription import WireProtocol
    from server.runtime.session import Broker


async def end_session(broker: Broker, client_id: str, protocol: WireProtocol) -> None:
    """End a session: a clean start with expiry 0, and leave. Harmless if there is none.

    Raises:
        ConnectionEndedError: the broker is away or refuses.
    """
    request = SessionRequest(
        broker=broker.connection, client_id=client_id, clean_start=True, session_expiry=0, receive_maximum=1
    )
    connection = await broker.connectors[protocol].connect(request, Nobody())
    await connection.leave()


async def end_unknown_session(broker: Broker, client_id: str) -> None:
    """End a session that is not ours, over the version of MQTT that the broker speaks, if that is to be found out.

    Raises:
        ConnectionEndedError: the broker is away or refuses.
    """
    negotiation = Negotiation(broker.connection.protocol, worked_over=None)
    for attempt in range(SILENT_CLOSES_BEFORE_FALLBACK + 1):
        try:
            await end_session(broker, client_id, negotiation.choice)
        except ConnectionEndedError as error:
            again = negotiation.refused(error.ended) or error.ended.silent
            if not again or attempt == SILENT_CLOSES_BEFORE_FALLBACK:
                raise
        else:
            return
