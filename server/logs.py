"""Logging: structlog for our own events and, through the same renderer, for the libraries' records."""

from __future__ import annotations

import logging
import re
import sys
from typing import TYPE_CHECKING, Literal

import structlog

if TYPE_CHECKING:
    from structlog.types import EventDict, Processor

_OURS = __name__.partition(".")[0]
# An API token, as server.core.tokens makes them.
_TOKEN = re.compile(r"mkf_[A-Za-z0-9_-]{43}")


def without_tokens(_: object, __: str, entry: EventDict) -> EventDict:
    """Leave API tokens out of an entry: somebody may have sent one where it does not belong, as in a path."""
    for key, value in entry.items():
        if isinstance(value, str) and "mkf_" in value:
            entry[key] = _TOKEN.sub("mkf_(removed)", value)
    return entry


def configure_logging(level: str, style: Literal["console", "json"]) -> None:
    """Send everything from `level` up to stderr, for people (console) or for machines (json, one object a line).

    Libraries are heard from INFO on at most, however low `level` is.
    """
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        without_tokens,
    ]
    if style == "json":
        shared.append(structlog.processors.format_exc_info)
        renderer: Processor = structlog.processors.JSONRenderer()
    else:
        # Plain tracebacks: rich ones take half a second each on the event loop.
        renderer = structlog.dev.ConsoleRenderer(
            colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback
        )
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelName(level.upper())),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler()
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, structlog.stdlib.add_logger_name],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    # Below INFO libraries print what goes over the wire: aiokafka whole requests, with the password and the payloads.
    logging.basicConfig(level=max(logging.getLevelName(level.upper()), logging.INFO), handlers=[handler], force=True)
    logging.getLogger(_OURS).setLevel(level.upper())
    for noisy in ("uvicorn.access", "uvicorn.error", "httpx", "httpcore", "alembic"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
