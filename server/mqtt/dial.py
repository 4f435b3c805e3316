"""The way to the broker: what carries the bytes of MQTT is TCP or TLS, and WebSocket over either if so configured."""

from __future__ import annotations

import asyncio
import ssl
from typing import TYPE_CHECKING, Any

from server.core.transport_failures import no_tls, tls_hung_up
from server.mqtt.port import ConnectionEndedError, Ended
from server.mqtt.tls import Contexts, is_end, reason_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from server.core.connections import MqttConnection
    from server.core.lifecycle import Reason

# Less than a connection gets in all (connection.CONNECT_TIMEOUT_SECONDS), so that this is what is reported.
HANDSHAKE_SECONDS = 8.0
# How much is read and not decrypted while reading is paused, and how little before reading goes on; hundreds of
# connections may hold that. The lower is more than the largest record, or half of one could wait for ever.
_ENCRYPTED_BYTES = (64 * 1024, 32 * 1024)
# A broker that does not answer our goodbye in TLS is left without.
SHUTDOWN_SECONDS = 1.0


class Dialer:
    """Opens transports to the broker, of one event loop."""

    def __init__(self) -> None:
        self._contexts = Contexts()

    async def open(self, protocol: asyncio.BufferedProtocol, broker: MqttConnection) -> None:
        """Open what the broker's settings say; `protocol` is told by `connection_made`, and speaks plain MQTT.

        Raises:
            ConnectionEndedError: TLS or WebSocket failed.
            OSError: the broker can't be reached.
            UnicodeError: its name is none.
        """
        if broker.transport == "tcp":
            await self._connect(protocol, broker)
            return
        # Only here: the library takes 6 MB, which a broker that is reached by TCP spares us.
        websocket = await asyncio.to_thread(_websocket_module)
        tunnel = websocket.WebSocket(protocol, broker)
        try:
            await self._connect(tunnel, broker)
            await tunnel.accepted(HANDSHAKE_SECONDS)
        except BaseException:
            tunnel.abort()
            raise

    async def _connect(self, protocol: asyncio.BaseProtocol, broker: MqttConnection) -> None:
        loop = asyncio.get_running_loop()
        make: Callable[[], asyncio.BaseProtocol] = lambda: protocol  # noqa: E731
        if broker.tls is None:
            await loop.create_connection(make, broker.host, broker.port)
            return
        context = await self._contexts.get(broker.tls)
        try:
            transport, _ = await loop.create_connection(
                make,
                broker.host,
                broker.port,
                ssl=context,
                server_hostname=broker.server_name,
                ssl_handshake_timeout=HANDSHAKE_SECONDS,
                ssl_shutdown_timeout=SHUTDOWN_SECONDS,
            )
        except ssl.SSLError as error:
            reason = _hung_up(broker) if is_end(error) else reason_of(error, broker)
            raise ConnectionEndedError(Ended(reason)) from error
        except (ConnectionResetError, BrokenPipeError) as error:
            raise ConnectionEndedError(Ended(_hung_up(broker))) from error
        except ConnectionAbortedError as error:  # how asyncio says that the handshake took too long
            silence = f"it did not answer within {HANDSHAKE_SECONDS:g} s"
            raise ConnectionEndedError(Ended(no_tls(broker.address, silence))) from error
        transport.set_read_buffer_limits(*_ENCRYPTED_BYTES)  # type: ignore[attr-defined] # only transports of TLS have it


def _hung_up(broker: MqttConnection) -> Reason:
    return tls_hung_up(broker.address, shows_certificate=broker.tls is not None and broker.tls.client_cert is not None)


def _websocket_module() -> Any:
    from server.mqtt import websocket  # noqa: PLC0415 - see above

    return websocket
