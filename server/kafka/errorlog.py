"""aiokafka retries in silence and only logs: keep its latest complaint for the status, and the log quiet."""

from __future__ import annotations

import logging
import time

_KEEP_SECONDS = 60.0
_FRESH_SECONDS = 10.0


class ErrorLog(logging.Filter):
    """Swallows aiokafka's repeated warnings, remembers the latest, and lets each text through once a minute."""

    def __init__(self) -> None:
        super().__init__()
        self._latest: tuple[float, str] | None = None
        self._shown: dict[str, float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the record goes on to the log."""
        if record.levelno < logging.WARNING:
            return True
        now, text = time.monotonic(), record.getMessage()
        self._latest = (now, text)
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

    def install(self) -> None:
        """Listen to aiokafka's loggers. A logger's filter sees only its own records, hence one for each."""
        for name in ("aiokafka", "aiokafka.conn", "aiokafka.cluster", "aiokafka.producer.sender"):
            logger = logging.getLogger(name)
            if self not in logger.filters:
                logger.addFilter(self)


ERROR_LOG = ErrorLog()
