"""aiokafka retries in silence and only logs: keep each producer's latest complaint, and the log quiet."""

from __future__ import annotations

import logging
import time
from contextvars import ContextVar
from typing import TYPE_CHECKING

from aiokafka.errors import BrokerResponseError

if TYPE_CHECKING:
    from server.core.lifecycle import Reason

_KEEP_SECONDS = 60.0
_FRESH_SECONDS = 10.0
# What aiokafka's sender says, with the partition and the error, before it tries a batch again.
_REFUSED = "Got error produce response on topic-partition"
# What it says at each login; the configuration has been warned of once.
_IN_THE_CLEAR = "Sending username and password in the clear"


class Complaints:
    """What one producer complains of. Once it is `over`, its last words are our own doing: they go nowhere."""

    def __init__(self) -> None:
        self.over = False
        self._latest: tuple[float, str, int | None] | None = None
        self._refusals: dict[str, tuple[float, type[BrokerResponseError]]] = {}
        self._connection: tuple[float, Reason | None] = (0.0, None)

    def note(self, record: logging.LogRecord, now: float) -> None:
        """Remember the complaint."""
        arguments = record.args if isinstance(record.args, tuple) else ()
        error = arguments[-1] if arguments else None
        code = error.errno if isinstance(error, BrokerResponseError) else None
        text = record.getMessage()
        if isinstance(error, Exception) and not str(error):
            text = f"{text.rstrip()} {type(error).__name__}"
        self._latest = (now, text, code)
        if str(record.msg).startswith(_REFUSED) and isinstance(error, type) and issubclass(error, BrokerResponseError):
            self._refusals[getattr(arguments[0], "topic", "")] = (now, error)

    def note_connection(self, reason: Reason | None) -> None:
        """Remember why the latest attempt to connect failed; None if it did not, or for no reason worth telling."""
        self._connection = (time.monotonic(), reason)

    def connection(self) -> Reason | None:
        """Why the latest attempt to connect failed, if that was within the last seconds."""
        at, reason = self._connection
        return reason if _fresh(at) else None

    def latest(self) -> str | None:
        """What it complained of within the last seconds."""
        return self._latest[1] if self._latest and _fresh(self._latest[0]) else None

    def code(self) -> int | None:
        """Kafka's error code behind the latest complaint, if there is one."""
        return self._latest[2] if self._latest and _fresh(self._latest[0]) else None

    def refusal(self, topic: str, since: float) -> type[BrokerResponseError] | None:
        """The error by which Kafka refused a batch for this topic within the last seconds; it is tried again.

        Not before `since` (monotonic seconds), when the batch was sent that this is to explain.
        """
        at, error = self._refusals.get(topic, (0.0, None))
        return error if at >= since and _fresh(at) else None


def _fresh(at: float) -> bool:
    return time.monotonic() - at <= _FRESH_SECONDS


# The tasks aiokafka starts inherit it from the task that started the producer, and so it tells whose words these are.
_COMPLAINTS: ContextVar[Complaints | None] = ContextVar("complaints", default=None)


def listen() -> Complaints:
    """Listen to what is started by this task from now on."""
    complaints = Complaints()
    _COMPLAINTS.set(complaints)
    return complaints


def current_complaints() -> Complaints:
    """Those of the producer that this task belongs to; what nobody listens to goes nowhere."""
    return _COMPLAINTS.get() or Complaints()


class ErrorLog(logging.Filter):
    """Hands aiokafka's warnings to who listens, swallows repeated ones, and lets each text through once a minute."""

    def __init__(self) -> None:
        super().__init__()
        self._shown: dict[str, float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the record goes on to the log."""
        if record.levelno < logging.WARNING:
            return True
        if record.msg == _IN_THE_CLEAR:
            return False
        complaints, now = _COMPLAINTS.get(), time.monotonic()
        if complaints is not None:
            if complaints.over:
                return False
            complaints.note(record, now)
        text = record.getMessage()
        self._shown = {known: at for known, at in self._shown.items() if now - at < _KEEP_SECONDS}
        if text in self._shown:
            return False
        self._shown[text] = now
        return True

    def install(self) -> None:
        """Listen to aiokafka's loggers. A logger's filter sees only its own records, hence one for each."""
        for name in ("aiokafka", "aiokafka.conn", "aiokafka.cluster", "aiokafka.producer.sender"):
            logger = logging.getLogger(name)
            if self not in logger.filters:
                logger.addFilter(self)


ERROR_LOG = ErrorLog()
