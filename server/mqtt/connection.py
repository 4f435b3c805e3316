"""What a connection does whichever protocol it speaks: connecting within a limit, keep alive, and leaving in order."""

from __future__ import annotations

import asyncio
import ssl
import sys
import time
from abc import ABC, abstractmethod
from collections import deque
from typing import TYPE_CHECKING, Any, TypeVar
from zlib import crc32

import structlog

from server.core.lifecycle import Reason
from server.core.transport_failures import foreign_answer, unanswered
from server.mqtt.packet import MAX_LENGTH_BYTES, packet_size, pubacks
from server.mqtt.port import MESSAGE_OVERHEAD_BYTES, ConnectionEndedError, Ended
from server.mqtt.readbuffer import ReadBuffer
from server.mqtt.tls import is_end, reason_of
from server.mqtt.unsent import Unsent
from server.ticks import LONG_SECONDS, tick_within

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from server.core.acks import Fingerprint
    from server.core.subscription import Subscription
    from server.mqtt.port import Granted, Message, Receiver, SessionRequest
    from server.mqtt.readbuffer import SharedBuffer
    from server.ticks import Ticks, Turn

CONNECT_TIMEOUT_SECONDS = 10.0
PINGRESP_TIMEOUT_SECONDS = 10.0
# The same while a broker has to read before we read on, for our PINGREQ is behind all that is unsent.
UNSENT_SECONDS = 60.0
SUBACK_TIMEOUT_SECONDS = 30.0
LEAVE_PINGRESP_SECONDS = 2.0
LEAVE_CLOSE_SECONDS = 1.0

# What is decoded at once: the receiver may have enough before all of a read is in messages, of which each takes much
# more memory than its bytes on the wire. By so much a budget can be overrun, and there may be hundreds.
SLICE_PACKETS = 256
SLICE_BYTES = 64 * 1024
REFUSED = 0x80  # reason codes from here on are refusals
_SEND_BYTES = 64 * 1024
_PINGREQ = b"\xc0\x00"
_DISCONNECT = b"\xe0\x00"
_MALFORMED_SAMPLE_BYTES = 64
_FOREIGN_BYTES = 8
_T = TypeVar("_T")
_log = structlog.get_logger()


class BaseConnection(ABC):
    """One connection, without the packets of its protocol.

    A subclass reads into `_reads.room()` and calls `heard` for every read, `accept` on CONNACK, `take_pingresp` on
    PINGRESP, `pause_writing` and `resume_writing` as the socket takes what it is given or not, and `closed` when the
    socket is gone; it supplies what stands below as abstract.
    """

    def __init__(self, request: SessionRequest, receiver: Receiver, shared: SharedBuffer, ticks: Ticks) -> None:
        self._request = request
        self._receiver = receiver
        self._loop = asyncio.get_running_loop()
        self._reads = ReadBuffer(shared)
        self._heard_at: float | None = None
        self._granted: Granted | None = None
        self._connack: asyncio.Future[None] = self._loop.create_future()
        self._keep_alive = request.broker.keep_alive
        self._ticks = ticks
        self._ping_at = 0.0  # by the loop's clock
        self._next_ping: Turn | None = None
        self._judgement: Turn | None = None
        self._silent_since = 0.0  # while a PINGREQ is unanswered, and its judgement is to come
        self._pings: deque[Callable[[], None] | None] = deque()  # unanswered, with whom to call
        self._reading_paused = False
        self._rest_timer: asyncio.TimerHandle | None = None
        self._after_rest: Callable[[], None] = lambda: None
        self._gives_way = False
        self._writing_paused = False
        self._unsent = Unsent()  # while it is, and until all of that is sent
        self._sending: asyncio.Handle | None = None
        self._reads_on = True  # unless `_read_or_not` knows why not
        self._leaving = False
        self._ending: Ended | None = None
        self.ended: asyncio.Future[Ended] = self._loop.create_future()

    # --- what the protocol supplies ---------------------------------------------------------------------------------

    @property
    @abstractmethod
    def _is_connected(self) -> bool:
        """Whether there is a socket to write to."""

    @abstractmethod
    def _send(self, data: bytes) -> None:
        """Hand to the socket, or to what has it."""

    @abstractmethod
    def _take_in(self, data: memoryview) -> None:
        """Decode these bytes slice by slice, and hand on what is in them, until reading is paused; keep the rest."""

    @abstractmethod
    def _stop_reading(self) -> None:
        """Leave bytes in the socket."""

    @abstractmethod
    def _start_reading(self) -> None:
        """Read again."""

    @abstractmethod
    def _end(self, ended: Ended) -> None:
        """Close behind what was written; `ended` says why."""

    @abstractmethod
    def _abort(self, ended: Ended) -> None:
        """Close at once; `ended` says why, unless it is ending already."""

    @abstractmethod
    def _disconnect_for(self, code: int) -> bytes:
        """The DISCONNECT that tells the broker this reason code; empty where the protocol has none."""

    @abstractmethod
    async def _acknowledgements_written(self, within: float) -> None:
        """Wait until every acknowledgement that is due was written, for so many seconds at most."""

    @abstractmethod
    def acknowledge(self, messages: Sequence[Message]) -> None:
        """Write PUBACK or PUBREC for these, in this order; only while the connection is open."""

    @abstractmethod
    async def subscribe(self, subscriptions: Sequence[Subscription]) -> dict[str, int]:
        """Subscribe, and return the QoS granted per filter.

        Raises:
            SubscriptionRefusedError: the broker refused a filter.
            ConnectionEndedError: the connection is gone.
        """

    @abstractmethod
    async def unsubscribe(self, filters: Sequence[str]) -> None:
        """Unsubscribe.

        Raises:
            ConnectionEndedError: the connection is gone.
        """

    # --- the port ---------------------------------------------------------------------------------------------------

    @property
    def granted(self) -> Granted:
        """What the broker granted; only after `accepted`."""
        if self._granted is None:
            raise RuntimeError("the broker has not accepted this connection yet")
        return self._granted

    @property
    def is_open(self) -> bool:
        """Whether acknowledgements can still be written."""
        return self._granted is not None and self._ending is None

    @property
    def withheld(self) -> Sequence[tuple[int, Fingerprint]]:
        """Packet ids whose acknowledgement was asked for and is not written yet, and what they delivered."""
        return ()

    async def connect(self, opening: Awaitable[object]) -> None:
        """Wait until the socket is open and the broker has accepted; nothing is left behind if that fails.

        Raises:
            ConnectionEndedError: it refused, could not be reached, or did not answer in CONNECT_TIMEOUT_SECONDS.
        """
        address = self._request.broker.address
        missing = "connection to"
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_SECONDS):
                await opening
                missing = "CONNACK from"
                await self.answered(self._connack)
        except TimeoutError:
            self.abort()
            silence = f"no {missing} {address} within {CONNECT_TIMEOUT_SECONDS:g} s"
            raise ConnectionEndedError(Ended(Reason("mqtt_timeout", silence))) from None
        except (OSError, UnicodeError) as error:  # UnicodeError: a host name that no DNS query can carry
            self.abort()
            what = getattr(error, "strerror", None) or error
            unreachable = Reason("mqtt_unreachable", f"can't connect to {address}: {what}")
            raise ConnectionEndedError(Ended(unreachable)) from error
        except BaseException:
            self.abort()
            raise

    def when_processed(self, call: Callable[[], None]) -> None:
        """Call once the broker has shown that it processed everything that was written so far (PINGRESP)."""
        self._send_ping(call)

    def rest(self, seconds: float, then: Callable[[], None]) -> None:
        """Leave bytes in the socket for so long, so that more are read together; then call, and read again."""
        if self._rest_timer is None and self.is_open and not self._leaving:
            self._rest_timer, self._after_rest = self._loop.call_later(seconds, self._rested), then
            self._read_or_not()

    def _rested(self) -> None:
        self._rest_timer = None
        self._read_or_not()
        self._after_rest()

    def give_way(self) -> None:
        """Let the event loop turn once before the next read.

        While each read fills its buffer libuv goes on, up to 32 times: 35,000 messages of 200 bytes, and 40 ms, in
        which none of Kafka's answers is heard.
        """
        if self._reads_on and self._ending is None:
            self._gives_way = True
            self._read_or_not()
            self._loop.call_soon(self._go_on)

    def _go_on(self) -> None:
        self._gives_way = False
        if self._ending is None:
            self._read_or_not()

    def _read_or_not(self) -> None:
        """Stop or start as a pause, a rest, giving way and what is unsent together ask for."""
        wanted = (
            not self._reading_paused
            and self._rest_timer is None
            and not self._gives_way
            and not self._unsent.is_too_much
        )
        if wanted == self._reads_on:
            return
        self._reads_on = wanted
        if wanted:
            self._start_reading()
        else:
            self._stop_reading()

    def pause_reading(self) -> None:
        """Leave bytes in the socket, so that the broker feels the back-pressure."""
        if self._is_connected and not self._reading_paused and not self._leaving and self._ending is None:
            self._reading_paused = True
            self._read_or_not()

    def resume_reading(self) -> None:
        """Read again; an outstanding PINGRESP gets its full time from here."""
        if self._is_connected and self._reading_paused and self._ending is None:
            self._reading_paused = False
            self._silent_since = time.monotonic()
            self._read_or_not()
            if self._reads.waiting:
                self._loop.call_soon(self._take_in_kept)

    async def leave(self, patience: float = LEAVE_PINGRESP_SECONDS) -> None:
        """Leave so that the broker has seen every acknowledgement, without ending the session (design.md, 4).

        The broker gets `patience` seconds to answer. Messages that still arrive are discarded unacknowledged. Bytes
        left unread at close would become a TCP reset, and the broker would forget acknowledgements it had not read.
        """
        if not self._is_connected or self._ending is not None:
            return
        self.resume_reading()
        if self._rest_timer is not None:
            self._rest_timer.cancel()
            self._rested()
        self._leaving = True
        self._cancel_timers()
        try:
            deadline = self._loop.time() + patience
            await self._acknowledgements_written(patience)
            answered: asyncio.Future[None] = self._loop.create_future()
            self.when_processed(lambda: answered.set_result(None))
            await self.or_ended(answered, max(LEAVE_CLOSE_SECONDS, deadline - self._loop.time()))
            if not answered.done():
                _log.warning("left_without_pingresp", client_id=self._request.client_id, seconds=patience)
            if not self.ended.done():
                self._write(_DISCONNECT)
                await asyncio.wait([self.ended], timeout=LEAVE_CLOSE_SECONDS)
        finally:
            self.abort()

    def abort(self) -> None:
        """Close at once."""
        self._abort(Ended(Reason("mqtt_closed", "closed by this side")))

    # --- writing, as asyncio's flow control asks for ----------------------------------------------------------------

    def pause_writing(self) -> None:
        """The broker does not read: what is written from now on waits here."""
        self._writing_paused = True

    def resume_writing(self) -> None:
        """The broker reads; an outstanding PINGRESP gets its full time from here."""
        self._writing_paused = False
        self._silent_since = time.monotonic()
        self._send_unsent()

    def _write(self, packets: bytes, *, pubacks_for: Sequence[int] = ()) -> None:
        """Write PUBACKs for these packet ids and then these packets, unless the connection is ending."""
        if not self._is_connected or self._ending is not None:
            return
        if self._writing_paused or self._unsent:
            self._unsent.add_pubacks(pubacks_for)
            self._unsent.add(packets)
            self._read_or_not()
        else:
            self._send(pubacks(pubacks_for) + packets if pubacks_for else packets)

    def _send_unsent(self) -> None:
        """Send part of it, and more with the next turn of the loop, until the socket takes no more."""
        if self._sending is not None:
            self._sending.cancel()
            self._sending = None
        if self._unsent and not self._writing_paused and self._ending is None:
            self._send(self._unsent.take(_SEND_BYTES))
            self._sending = self._loop.call_soon(self._send_unsent)
            self._read_or_not()

    def _send_all(self) -> None:
        """Send what is unsent before the connection is closed: a broker that reads after all has it."""
        if self._unsent and self._ending is None:
            self._send(self._unsent.take(sys.maxsize))

    # --- for the protocol -------------------------------------------------------------------------------------------

    def heard(self, size: int) -> None:
        """Note that the broker lives, and take in what was read, unless a packet there lacks more."""
        self._heard_at = self._silent_since = time.monotonic()
        data = self._reads.filled(size)
        if data is None:
            self._receiver.receiving(self._reads.waiting)
        else:
            self._take_in(data)

    def _take_in_kept(self) -> None:
        if self._ending is None and not self._reading_paused and (data := self._reads.whole()) is not None:
            self._take_in(data)

    def accept(self, granted: Granted) -> None:
        """The broker accepted: tell whoever receives, before any message."""
        self._granted = granted
        if self._keep_alive:
            self._schedule_ping(self._first_ping_within())
        self._receiver.connected(self)
        if not self._connack.done():
            self._connack.set_result(None)

    def hand_over(self, messages: list[Message], message_bytes: int) -> None:
        """Hand messages of this size (bytes on the wire) on; while leaving they are discarded unacknowledged."""
        if self._granted is None:
            self.refuse_packet("PUBLISH before CONNACK")
        elif self._leaving:
            self._receiver.discarded(messages)
        else:
            self._receiver.received(messages, message_bytes + MESSAGE_OVERHEAD_BYTES * len(messages))

    def refuse_packet(self, what: str) -> Ended:
        """End the connection: the broker sent what it may not."""
        self._write(self._disconnect_for(0x82))
        ended = Ended(Reason("mqtt_protocol", f"the broker broke the protocol: {what}"))
        self._end(ended)
        return self._ending or ended

    def malformed(self, data: bytes | memoryview, what: str) -> None:
        """End the connection: what begins here can't be decoded."""
        self._write(self._disconnect_for(0x81))
        size = packet_size(data)
        # Behind a length that is too long nothing can be told apart: what follows is not of this packet.
        sample = bytes(data[: 1 + MAX_LENGTH_BYTES if size is None else size or len(data)])
        begins = sample[:_MALFORMED_SAMPLE_BYTES].hex()
        said = f"the broker sent a packet that can't be decoded ({what}); it begins with {begins}"
        self._end(Ended(Reason("mqtt_malformed_packet", said), malformed=sample))

    def lost(self, error: Exception | None) -> Ended:
        """Why the connection is gone, if nothing was known before: it broke, or without an error the broker closed.

        A takeover by another client may look like that: over 3.1.1 always, and Mosquitto 2.0 says nothing over 5.
        """
        if isinstance(error, ConnectionEndedError):  # what carries MQTT knows
            return error.ended
        broker = self._request.broker
        if is_end(error):
            error = None
        elif isinstance(error, ssl.SSLError):
            return Ended(reason_of(error, broker, established=self._granted is not None))
        by_broker = error is None or isinstance(error, ConnectionResetError | BrokenPipeError)
        if by_broker and self._heard_at is None:
            return Ended(unanswered(broker.address, is_tls=broker.tls is not None), silent=error is None)
        unexplained = by_broker and self._granted is not None
        hint = ", perhaps because another client uses the client id" if unexplained else ""
        what = f"the connection to {broker.address} was lost: {error or 'closed by the broker'}{hint}"
        return Ended(Reason("mqtt_connection_lost", what), unexplained=unexplained)

    def closed(self, ended: Ended) -> None:
        """The socket is gone; tell everyone who waits."""
        self._cancel_timers()
        self._ending = self._ending or ended
        if not self.ended.done():
            self.ended.set_result(self._ending)

    def is_foreign(self, answer: memoryview) -> bool:
        """Whether the broker's first bytes are of another protocol; the connection ends then, and says of which."""
        broker = self._request.broker
        reason = foreign_answer(
            broker.address,
            bytes(answer[:_FOREIGN_BYTES]),
            is_tls=broker.tls is not None,
            is_websocket=broker.transport == "websocket",
        )
        if reason is not None:
            self._end(Ended(reason))
        return reason is not None

    async def answered(self, answer: asyncio.Future[_T]) -> _T:
        """Wait for an answer of the broker.

        Raises:
            ConnectionEndedError: the connection ended first.
        """
        waiting: list[asyncio.Future[Any]] = [answer, self.ended]
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        if answer.done():
            return answer.result()
        raise ConnectionEndedError(self.ended.result())

    async def or_ended(self, future: asyncio.Future[None], seconds: float) -> None:
        """Wait for the future, for the end of the connection, or for so many seconds."""
        waiting: list[asyncio.Future[Any]] = [future, self.ended]
        await asyncio.wait(waiting, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)

    def no_answer(self, name: str) -> ConnectionEndedError:
        """End the connection: the broker owes an answer for too long. Returns what to raise."""
        ended = Ended(Reason("mqtt_timeout", f"no {name} within {SUBACK_TIMEOUT_SECONDS:g} s"))
        self._end(ended)
        return ConnectionEndedError(self._ending or ended)

    # --- keep alive -------------------------------------------------------------------------------------------------

    def take_pingresp(self) -> None:
        """The broker answered a PINGREQ."""
        if self._judgement is not None:
            self._judgement.cancel()
            self._judgement = None
        call = self._pings.popleft() if self._pings else None
        if call is not None:
            call()

    def _first_ping_within(self) -> float:
        """How soon: not at the same tick for all that connected together, at a start or when their broker is back."""
        phases = max(1, self._keep_alive // LONG_SECONDS)
        return self._keep_alive - LONG_SECONDS * (crc32(self._request.client_id.encode()) % phases)

    def _schedule_ping(self, seconds: float) -> None:
        # PINGREQs go out at a steady pace, also while reading is paused, so that the broker keeps us.
        self._ping_at = tick_within(self._loop.time(), seconds)
        self._next_ping = self._ticks.call_at(self._ping_at, self._ping)

    def _ping(self) -> None:
        if self._judgement is None:
            self._silent_since = time.monotonic()
            self._judgement = self._ticks.call_at(self._ping_at + PINGRESP_TIMEOUT_SECONDS, self._judge_pingresp)
        self._send_ping(None)
        self._schedule_ping(self._keep_alive)

    def _send_ping(self, call: Callable[[], None] | None) -> None:
        self._pings.append(call)
        self._write(_PINGREQ)

    def _judge_pingresp(self) -> None:
        """End a silent connection.

        Not while reading is paused or rests, and not while bytes come: PINGRESP waits behind all that is queued. And
        while the broker has to read before we do, our PINGREQ is behind all that is unsent.
        """
        now = time.monotonic()
        silent_for = now - self._silent_since
        unread = self._reading_paused or self._rest_timer is not None
        patience = UNSENT_SECONDS if self._unsent.is_too_much else PINGRESP_TIMEOUT_SECONDS
        if unread or silent_for < patience:
            remaining = PINGRESP_TIMEOUT_SECONDS if unread else patience - silent_for
            self._judgement = self._ticks.call_at(self._loop.time() + remaining, self._judge_pingresp)
            return
        silence = f"the broker did not answer PINGREQ within {patience:g} s"
        unheard = silent_for if self._heard_at is None else now - self._heard_at
        self._abort(Ended(Reason("mqtt_keep_alive", silence), unheard_seconds=unheard))

    def _cancel_timers(self) -> None:
        for timer in (self._next_ping, self._judgement, self._rest_timer):
            if timer is not None:
                timer.cancel()
