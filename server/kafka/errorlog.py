"""aiokafka retries in silence and only logs: keep its latest complaint for the status, and the log quiet."""

from __future__ import annotations

import logging
import time

from aiokafka.errors import BrokerResponseError

_KEEP_SECONDS = 60.0
_FRESH_SECONDS = 10.0
# What aiokafka's sender says, with the partition and the error, before it tries a batch again.
_REFUSED = "Got error produce response on topic-partition"


class ErrorLog(logging.Filter):
    """Swallows aiokafka's repeated warnings, remembers the latest, and lets each text through once a minute."""

    def __init__(self) -> None:
        super().__init__()
        self._latest: tuple[float, str] | None = None
        self._refusals: dict[str, tuple[float, type[BrokerResponseError]]] = {}
        self._shown: dict[str, float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the record goes on to the log."""
        if record.levelno < logging.WARNING:
            return True
        now, text = time.monotonic(), record.getMessage()
        self._latest = (now, text)
        self._note_refusal(now, record)
        self._shown = {known: at for known, at in self._shown.items() if now - at < _KEEP_SECONDS}
        if text in self._shown:
            return False
        self._shown[text] = now
        return True

    def latest(self) -> str | None:
        """What aiokafka complained of within the last seconds."""
        if self._latest is None or time.monotonic() - self._latest[0] > _FRESH_SECONDS:
            return None
        return self._latest[1]

    def refusal(self, topic: str) -> type[BrokerResponseError] | None:
        """The error by which Kafka refused a batch for this topic within the last seconds; aiokafka tries it again."""
        at, error = self._refusals.get(topic, (0.0, None))
        return None if error is None or time.monotonic() - at > _FRESH_SECONDS else error

    def _note_refusal(self, now: float, record: logging.LogRecord) -> None:
        if str(record.msg).startswith(_REFUSED) and isinstance(record.args, tuple):
            partition, error = record.args
            if isinstance(error, type) and issubclass(error, BrokerResponseError):  # else Kafka's own words
                self._refusals[getattr(partition, "topic", "")] = (now, error)

    def install(self) -> None:
        """Listen to aiokafka's loggers. A logger's filter sees only its own records, hence one for each."""
        for name in ("aiokafka", "aiokafka.conn", "aiokafka.cluster", "aiokafka.producer.sender"):
            logger = logging.getLogger(name)
            if self not in logger.filters:
                logger.addFilter(self)


ERROR_LOG = ErrorLog()
