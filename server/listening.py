"""How the API listens: limits on what a connection may take, whose word on addresses is believed, and TLS."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Sequence

HTTP_GRACE_SECONDS = 2
# For the head of a request; the body has its own limit, in server.api.bodies.
HEAD_SECONDS = 10.0
HEAD_BYTES = 32 * 1024


class ImpatientProtocol(H11Protocol):
    """uvicorn's protocol, which by itself waits for ever for the head of a request."""

    _patience: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for the first head."""
        super().connection_made(transport)
        self._wait_for_head()

    def data_received(self, data: bytes) -> None:
        """Wait on for a head that has come in part; a request that is under way has the time it needs."""
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            self._stop_waiting()
        elif self._patience is None and self.conn.trailing_data[0]:
            self._wait_for_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the timer with the connection."""
        self._stop_waiting()
        super().connection_lost(exc)

    def _wait_for_head(self) -> None:
        self._patience = self.loop.call_later(HEAD_SECONDS, self.transport.close)

    def _stop_waiting(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None


def server_config(app: Callable[..., Any], *, trusted_proxies: Sequence[str], **options: Any) -> uvicorn.Config:
    """How uvicorn shall serve the application.

    Only what `trusted_proxies` (addresses and networks) say of a client's address is believed: by default uvicorn also
    believes whoever comes from loopback.
    """
    return uvicorn.Config(
        app,
        http=ImpatientProtocol,
        h11_max_incomplete_event_size=HEAD_BYTES,
        log_config=None,
        lifespan="on",
        ws="none",
        timeout_graceful_shutdown=HTTP_GRACE_SECONDS,
        access_log=False,
        server_header=False,
        proxy_headers=bool(trusted_proxies),
        forwarded_allow_ips=list(trusted_proxies),
        **options,
    )
