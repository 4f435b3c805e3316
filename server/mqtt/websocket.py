"""WebSocket under MQTT (RFC 6455; MQTT 5.0, 6): `websockets`' sans-I/O protocol between a transport and a connection.

A read becomes one call with the bytes of all its frames, however the broker cuts packets into frames; what is written
together leaves in one frame. The connection sees a transport that carries plain MQTT.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from typing import TYPE_CHECKING, cast

from websockets.client import ClientProtocol
from websockets.exceptions import InvalidHandshake, InvalidMessage, InvalidStatus, InvalidURI
from websockets.frames import CloseCode, Frame, Opcode
from websockets.http11 import Response
from websockets.protocol import State
from websockets.typing import Subprotocol
from websockets.uri import parse_uri

from server.core.lifecycle import Reason
from server.core.transport_failures import foreign_answer, websocket_protocol, websocket_status
from server.mqtt.port import ConnectionEndedError, Ended
from server.mqtt.tls import is_end, reason_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from websockets.typing import BytesLike

    from server.core.connections import MqttConnection

# The largest packet of MQTT, with its header. A frame is held until it is whole.
MAX_FRAME_BYTES = 268_435_455 + 5
_MQTT = Subprotocol("mqtt")
_DATA = frozenset({Opcode.BINARY, Opcode.CONT})
# Closed in order, for whatever reason: as if the broker had closed the connection.
_ORDERLY = frozenset({CloseCode.NORMAL_CLOSURE, CloseCode.GOING_AWAY, CloseCode.NO_STATUS_RCVD})
_SHOWN_CHARACTERS = 100
# At DEBUG the library logs every frame, and the first holds the password.
_log = logging.getLogger(f"{__name__}.frames")
_log.setLevel(logging.WARNING)


class WebSocket(asyncio.Transport, asyncio.Protocol):
    """A protocol to the network's transport, and a transport to an MQTT connection.

    Raises:
        OSError: the broker's host is none that a URL can carry.
    """

    def __init__(self, mqtt: asyncio.BufferedProtocol, broker: MqttConnection) -> None:
        super().__init__()
        scheme = "ws" if broker.tls is None else "wss"
        self._mqtt = mqtt
        self._broker = broker
        # Without the query, which may hold a signature.
        self._url = f"{scheme}://{broker.address}{broker.path.partition('?')[0]}"
        try:
            uri = parse_uri(f"{scheme}://{broker.address}{broker.path}")
        except (InvalidURI, ValueError) as error:
            raise OSError("there can be no such host") from error
        self._frames = ClientProtocol(
            uri,
            subprotocols=[_MQTT],
            max_size=(None, MAX_FRAME_BYTES),
            logger=_log,
        )
        self._network: asyncio.Transport | None = None
        self._accepted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._is_open = False
        self._closing = False
        self._heard = False
        self._has_carried = False
        self._failure: ConnectionEndedError | None = None

    async def accepted(self, within: float) -> None:
        """Wait until the broker has agreed to speak MQTT over this WebSocket, for so many seconds at most.

        Raises:
            ConnectionEndedError: it did not.
        """
        try:
            async with asyncio.timeout(within):
                await self._accepted
        except TimeoutError:
            raise self._refusal(f"no answer to the request within {within:g} s") from None

    # --- a protocol to the network ----------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Ask for a WebSocket."""
        self._network = cast("asyncio.Transport", transport)
        if self._closing:
            self._network.abort()
            return
        self._frames.send_request(self._frames.connect())
        self._flush()

    def data_received(self, data: bytes) -> None:
        """Hand on what the frames of this read carry, and answer what wants to be."""
        if self._closing:
            return
        if not self._heard:
            self._heard = True
            foreign = foreign_answer(self._broker.address, data, is_tls=self._broker.tls is not None, is_websocket=True)
            if foreign is not None:
                self._fail(ConnectionEndedError(Ended(foreign)))
                return
        self._frames.receive_data(data)
        events = self._frames.events_received()
        if not self._is_open:
            if not self._opened(events):
                return
            events = events[1:]
        frames = cast("list[Frame]", events)
        if any(frame.opcode is Opcode.TEXT for frame in frames):
            self._fail(self._refusal("it sends text frames"), CloseCode.UNSUPPORTED_DATA)
            return
        self._flush()
        self._hand_on([frame.data for frame in frames if frame.opcode in _DATA])
        self._see_the_end()

    def pause_writing(self) -> None:
        """The broker does not read."""
        if self._is_open:
            self._mqtt.pause_writing()

    def resume_writing(self) -> None:
        """It reads."""
        if self._is_open:
            self._mqtt.resume_writing()

    def eof_received(self) -> bool:
        """Take what was said last, and let the network's transport close."""
        if not self._is_open and not self._closing:
            self._frames.receive_eof()
            self._opened(self._frames.events_received())
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the connection, or who waits for it to be open."""
        self._closing = True
        if self._is_open:
            self._mqtt.connection_lost(self._failure or exc)
        elif not self._accepted.done():
            self._accepted.set_exception(self._failure or self._unopened(exc))

    def _unopened(self, error: Exception | None) -> ConnectionEndedError:
        """Why there was no answer to the request."""
        if isinstance(error, ssl.SSLError) and not is_end(error):
            return ConnectionEndedError(Ended(reason_of(error, self._broker)))
        said = "it closed the connection instead of answering the request"
        return self._refusal(said if self._broker.tls is not None else f"{said}, as a port does that wants TLS")

    # --- a transport to the connection ------------------------------------------------------------------------------

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send this in one frame."""
        # A close of the broker may have been answered already, in the read whose messages are being acknowledged here.
        if not self._closing and self._frames.state is State.OPEN:
            self._frames.send_binary(bytes(data))
            self._flush()

    def pause_reading(self) -> None:
        """Leave bytes in the socket."""
        if self._network is not None and not self._closing:
            self._network.pause_reading()

    def resume_reading(self) -> None:
        """Read again."""
        if self._network is not None and not self._closing:
            self._network.resume_reading()

    def is_closing(self) -> bool:
        """Whether nothing can be written any more."""
        return self._closing

    def close(self) -> None:
        """Close behind what was written."""
        self._close(CloseCode.NORMAL_CLOSURE)

    def abort(self) -> None:
        """Close at once."""
        self._closing = True
        if self._network is not None:
            self._network.abort()

    # --- both -------------------------------------------------------------------------------------------------------

    def _opened(self, events: Iterable[object]) -> bool:
        """Whether the answer to the request is there and the broker has agreed; the connection begins then."""
        error = self._frames.handshake_exc
        if error is not None:
            self._fail(self._refused(error))
            return False
        if not any(isinstance(event, Response) for event in events):
            return False
        if self._frames.subprotocol != _MQTT:
            self._fail(self._refusal("it did not agree to the subprotocol mqtt"), CloseCode.PROTOCOL_ERROR)
            return False
        self._is_open = True
        self._mqtt.connection_made(self)
        if not self._accepted.done():
            self._accepted.set_result(None)
        return True

    def _refused(self, error: Exception) -> ConnectionEndedError:
        """What to raise if the answer is not what was asked for."""
        if isinstance(error, InvalidStatus):
            response = error.response
            location = response.headers.get("Location")
            reason = websocket_status(
                self._url,
                int(response.status_code),
                response.reason_phrase[:_SHOWN_CHARACTERS],
                None if location is None else location.partition("?")[0][:_SHOWN_CHARACTERS],
            )
            return ConnectionEndedError(Ended(reason))
        if isinstance(error, InvalidMessage):
            return self._refusal("it does not answer in HTTP") if self._heard else self._unopened(None)
        if isinstance(error, InvalidHandshake):
            return self._refusal(f"its answer is not as it should be ({str(error)[:_SHOWN_CHARACTERS]})")
        return self._refusal(type(error).__name__)

    def _refusal(self, what: str) -> ConnectionEndedError:
        return ConnectionEndedError(Ended(websocket_protocol(self._url, what)))

    def _hand_on(self, payloads: list[BytesLike]) -> None:
        """Copy what the frames carry to where the connection reads."""
        data = memoryview(payloads[0] if len(payloads) == 1 else b"".join(payloads))
        while data and not self._closing:
            room = cast("memoryview", self._mqtt.get_buffer(len(data)))
            size = min(len(room), len(data))
            room[:size] = data[:size]
            data = data[size:]
            self._has_carried = True
            self._mqtt.buffer_updated(size)

    def _see_the_end(self) -> None:
        """Close if the broker has, or if it broke the protocol; what came before was handed on."""
        if self._closing:
            return
        closed = self._frames.close_rcvd
        if closed is not None:
            if closed.code not in _ORDERLY:
                said = f" {closed.reason[:_SHOWN_CHARACTERS]!r}" if closed.reason else ""
                detail = f"the broker closed the WebSocket {self._url} with code {int(closed.code)}{said}"
                reason = Reason("mqtt_websocket_closed", detail)
                self._failure = ConnectionEndedError(Ended(reason, silent=not self._has_carried))
            self._close()
        elif self._frames.parser_exc is not None:
            self._fail(self._refusal(f"a frame is not as it should be ({self._frames.parser_exc})"))

    def _fail(self, error: ConnectionEndedError, code: CloseCode = CloseCode.NORMAL_CLOSURE) -> None:
        self._failure = error
        if not self._is_open and not self._accepted.done():
            self._accepted.set_exception(error)
        self._close(code)

    def _close(self, code: CloseCode = CloseCode.NORMAL_CLOSURE) -> None:
        if self._closing or self._network is None:
            return
        self._closing = True
        if self._is_open and not self._frames.close_expected():
            self._frames.send_close(code)
        self._flush()
        self._network.close()

    def _flush(self) -> None:
        if self._network is not None:
            data = b"".join(self._frames.data_to_send())
            if data:
                self._network.write(data)
