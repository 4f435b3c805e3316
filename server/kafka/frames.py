"""The frames that a broker sends on one connection, each handed on where it is read.

aiokafka has a task for each connection, which is woken for every frame, in a turn of the event loop of its own
(docs/decisions/0022-an-answer-is-taken-where-it-is-read.md, with what that costs).
"""

from __future__ import annotations

import asyncio
import weakref
from struct import Struct
from typing import TYPE_CHECKING, Any, Protocol

from aiokafka.conn import AIOKafkaProtocol

if TYPE_CHECKING:
    from collections.abc import Callable

_LENGTH = Struct(">i")


class Listener(Protocol):
    """Who takes what comes."""

    def take_frame(self, frame: bytes) -> None:
        """A frame, without its length."""

    def no_more_frames(self, error: BaseException) -> None:
        """Why none will come any more, once.

        That is IncompleteReadError if the broker closed the connection, with what it had begun to send, and otherwise
        what broke it, or what taking a frame raised.
        """


def _nobody() -> None:
    return None


class Frames(AIOKafkaProtocol):  # type: ignore[misc] # aiokafka has no types
    """aiokafka's protocol of a connection, which needs no task that reads.

    It does not keep its listener alive: aiokafka drops a connection that it has not finished to make, and relies on
    that closing it.
    """

    def __init__(self, closed: asyncio.Future[None], *arguments: Any, **options: Any) -> None:
        super().__init__(closed, *arguments, **options)
        self._begun = bytearray()  # a frame that lacks more, with its length
        self._needed = 0  # how many bytes it has when it is whole
        self._listener: Callable[[], Listener | None] = _nobody
        self._error: BaseException | None = None  # what ended it before anybody listened

    def listen(self, listener: Listener) -> None:
        """Hand all that comes on from here. Nothing has come before, but the end may have."""
        self._listener = weakref.ref(listener)
        if self._error is not None:
            self._loop.call_soon(self._ended, self._error)

    def deafen(self) -> None:
        """Hand nothing on any more."""
        self._listener = _nobody

    def data_received(self, data: bytes) -> None:
        """Hand on what is whole."""
        begun = self._begun
        if begun:
            begun += data
            if len(begun) < self._needed:
                return
            data = bytes(begun)
            begun.clear()
        try:
            self._take(data)
        except Exception as error:  # noqa: BLE001 - as aiokafka: whatever it is, the connection ends with it
            self._ended(error)

    def _take(self, data: bytes) -> None:
        begin, total, prefix = 0, len(data), _LENGTH.size
        while begin < total and (listener := self._listener()) is not None:
            self._needed = prefix
            if total - begin >= prefix:
                (size,) = _LENGTH.unpack_from(data, begin)
                if size < 0:
                    raise ValueError(f"a frame of {size} bytes")
                self._needed += size
            if total - begin < self._needed:
                self._begun += data[begin:]
                return
            frame = data[begin + prefix : begin + self._needed]
            begin += self._needed
            listener.take_frame(frame)

    def eof_received(self) -> bool:
        """The broker sends no more."""
        self._ended(self._incomplete())
        return bool(super().eof_received())

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing comes any more."""
        super().connection_lost(exc)
        if exc is not None:
            # asyncio keeps the error in a future that nobody waits for, and retrieves it when the protocol is deleted.
            # In a cycle Python's collector may delete the future first, and asyncio logs "was never retrieved".
            self._closed.exception()
        self._ended(exc or self._incomplete())

    def _incomplete(self) -> asyncio.IncompleteReadError:
        """What a reader of the length, and then of the rest, would say."""
        prefix = _LENGTH.size
        if len(self._begun) < prefix:
            return asyncio.IncompleteReadError(bytes(self._begun), prefix)
        return asyncio.IncompleteReadError(bytes(self._begun[prefix:]), self._needed - prefix)

    def _ended(self, error: BaseException) -> None:
        listener = self._listener()
        self.deafen()
        if listener is not None:
            listener.no_more_frames(error)
        elif self._error is None:
            self._error = error
