"""aiokafka's connection to a broker, but for how produce requests are written, and what is said of its failures."""

from __future__ import annotations

import functools
import time
from typing import TYPE_CHECKING, Any, NoReturn, Protocol

import aiokafka.conn
from aiokafka.conn import AIOKafkaConnection, CloseReason, log
from aiokafka.errors import CorrelationIdError, KafkaConnectionError, KafkaError, RequestTimedOutError

from server.kafka.connecting import explained, note_end
from server.kafka.frames import Frames
from server.kafka.produce_request import Answer, Request, RequestBody, correlation_id

if TYPE_CHECKING:
    import asyncio


class Asker(Protocol):
    """Who asked, and hears of the answer where it is read; aiokafka takes it for a future."""

    def done(self) -> bool:
        """Whether it has heard, or does not want to any more."""

    def set_result(self, answer: Any) -> None:
        """The answer, of the version that the broker speaks. Raises nothing."""

    def set_exception(self, error: BaseException) -> None:
        """There will be no answer. Act later: the connection is about to be closed, and does not look so yet."""


class Connection(AIOKafkaConnection):  # type: ignore[misc] # aiokafka has no types
    """Writes produce requests without copying their batches, and hears of a transport that is gone.

    aiokafka joins a request three times: 5 µs of the 31 that a message of 10 kB costs. It waits for each answer with a
    timer of its own, and reads it field by field; here one timer looks at all that are late.

    Between a TCP reset and the call of `connection_lost` uvloop raises RuntimeError on writing, where asyncio's own
    transports keep silent. aiokafka expects OSError only: the task that writes would end, and with it all metadata, or
    a batch would never be answered.
    """

    _deadline: asyncio.TimerHandle | None = None

    async def connect(self) -> Any:
        """Connect and log in.

        Raises:
            OSError, KafkaError: it failed.
        """
        with explained(self):
            return await super().connect()

    def send(self, request: Any, expect_response: bool = True) -> Any:
        """Write a request; returns what to await for its answer.

        Raises:
            KafkaConnectionError: the connection is gone.
        """
        try:
            return super().send(request, expect_response)
        except (RuntimeError, OSError) as error:
            self._raise(error)

    def produce(self, request: Request, asker: Asker) -> None:
        """Write a produce request; its asker hears of the answer. There always is one: acks is never 0.

        Raises:
            KafkaConnectionError: the connection is gone.
            IncompatibleBrokerVersion, NotImplementedError: the broker speaks no version of it that aiokafka does.
        """
        try:
            body = request.prepare(self._versions) if self._writer else None
            if isinstance(body, RequestBody):
                number = self._next_correlation_id()
                self._writer.writelines(body.pieces(number, self._client_id))
                self._requests.append((number, body, asker))
            else:  # the broker is older than Kafka 2.1
                super().send(request).close()  # a coroutine that would wait with a timer of its own
                _, body, answer = self._requests[-1]
                answer.add_done_callback(functools.partial(_pass_on, asker))
        except (RuntimeError, OSError) as error:
            self._raise(error)
        body.deadline = self._loop.time() + self._request_timeout
        if self._deadline is None:
            self._deadline = self._loop.call_at(body.deadline, self._look_for_late_answers)

    def _look_for_late_answers(self) -> None:
        self._deadline = None
        now = self._loop.time()
        for _, body, answer in self._requests:
            deadline = getattr(body, "deadline", None)  # other requests than these wait with timers of their own
            if deadline is None or answer.done():
                continue
            if deadline > now:
                self._deadline = self._loop.call_at(deadline, self._look_for_late_answers)
                break
            late = RequestTimedOutError()
            answer.set_exception(late)
            self.close(reason=CloseReason.CONNECTION_TIMEOUT, exc=late)  # the others fail with it
            break

    def _handle_frame(self, frame: bytes) -> None:
        number, body, answer = self._requests[0]
        if not isinstance(body, RequestBody):
            super()._handle_frame(frame)
            return
        if (found := correlation_id(frame)) != number:
            error = CorrelationIdError(f"Kafka answered request {found} instead of {number}")
            self.close(reason=CloseReason.OUT_OF_SYNC, exc=error)
            return
        said = Answer.decode(frame)  # before the request is forgotten: if this fails, the connection's end tells it
        self._last_action = time.monotonic()
        self._requests.popleft()
        if not answer.done():
            answer.set_result(said)

    def _create_reader_task(self) -> asyncio.Future[None]:
        """Read from here on; returns what aiokafka cancels when it closes the connection."""
        self._protocol.listen(self)
        to_cancel: asyncio.Future[None] = self._loop.create_future()
        return to_cancel

    def take_frame(self, frame: bytes) -> None:
        """Take an answer."""
        self._handle_frame(frame)

    def no_more_frames(self, error: BaseException) -> None:
        """Close: nothing will be answered any more."""
        if not isinstance(error, OSError | EOFError):
            log.error("Unexpected exception in AIOKafkaConnection", exc_info=error)  # as aiokafka's task would
        self.close(reason=CloseReason.CONNECTION_BROKEN, exc=error)

    def close(self, reason: CloseReason | None = None, exc: BaseException | None = None) -> Any:
        """Close, at once if answers are owed: whoever waits for them hears that they don't come, and sends anew.

        aiokafka would write what waits for room in the socket, whenever the broker reads again: behind what was sent
        anew, perhaps by another producer.
        """
        note_end(self, exc)
        if self._reader is not None:
            self._protocol.deafen()
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
        if self._requests and self._writer is not None:
            self._writer.transport.abort()
        return super().close(reason=reason, exc=exc)

    def _send_sasl_token(self, payload: bytes, expect_response: bool = True) -> Any:
        try:
            return super()._send_sasl_token(payload, expect_response)
        except RuntimeError as error:
            self._raise(error)

    def _raise(self, error: Exception) -> NoReturn:
        """Raise what writing raised: the connection is gone, unless aiokafka refuses the request."""
        if isinstance(error, KafkaError | NotImplementedError):  # RuntimeErrors, too
            raise error
        self.close(reason=CloseReason.CONNECTION_BROKEN)
        raise KafkaConnectionError(f"the connection is closed: {error}") from error


def _pass_on(asker: Asker, answer: asyncio.Future[Any]) -> None:
    error = answer.exception()
    if asker.done():
        return
    if error is not None:
        asker.set_exception(error)
    else:
        asker.set_result(answer.result())


def use() -> None:
    """Let aiokafka's clients make such connections."""
    aiokafka.conn.AIOKafkaConnection = Connection
    aiokafka.conn.AIOKafkaProtocol = Frames
