"""How the API listens: limits on what a connection may take, whose word on addresses is believed, and TLS."""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING, Any, NoReturn, Self

import h11
import structlog
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Sequence
    from pathlib import Path

_log = structlog.get_logger(__name__)

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


class CertificateError(Exception):
    """The certificate or its key can't be used; the message says which file, why, and what to do."""


class Certificate:
    """The certificate (with its chain) and key of two PEM files, and the TLS that serves with what they hold now.

    Raises:
        CertificateError: they can't be used.
    """

    def __init__(self, certificate: Path, key: Path) -> None:
        self.files = (certificate, key)
        self.context = _CurrentContext()
        self._trouble: str | None = None
        self.load()

    def load(self) -> None:
        """Use what the files hold now for all connections to come; in any thread.

        Raises:
            CertificateError: they can't be used; what was used before stays in use.
        """
        self.context.current = self._loaded()

    def reload(self) -> None:
        """The same after a change of the files, of which one may be older than the other; trouble is logged, once."""
        trouble = None
        try:
            self.load()
        except CertificateError as error:
            trouble = str(error)
            if trouble != self._trouble:
                _log.error("certificate_unusable", reason=f"{trouble}; the one before stays in use")
        else:
            _log.info("certificate_loaded", file=str(self.files[0]))
        self._trouble = trouble

    def _loaded(self) -> ssl.SSLContext:
        certificate, key = self.files
        for variable, file in (("MKF_TLS_CERT", certificate), ("MKF_TLS_KEY", key)):
            try:
                file.open("rb").close()
            except OSError as error:
                raise CertificateError(f"{variable}: {file} can't be read: {error.strerror}") from None
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        try:
            context.load_cert_chain(certificate, key, password=_no_password)
        except ssl.SSLError as error:
            why = f"expected are PEM files with a certificate (and its chain) and an unencrypted key ({error.reason})"
            if error.reason == "KEY_VALUES_MISMATCH":
                why = "the key is not the certificate's"
            raise CertificateError(f"MKF_TLS_CERT {certificate} and MKF_TLS_KEY {key} can't be used: {why}") from None
        except OSError as error:  # replaced just now
            raise CertificateError(f"{certificate} and {key} can't be read: {error.strerror}") from None
        except _EncryptedKeyError:
            raise CertificateError(
                f"MKF_TLS_KEY: {key} is encrypted; give one that is not, readable by the service only"
            ) from None
        return context


class _CurrentContext(ssl.SSLContext):
    """Begins each connection with the context that is `current`, and is none itself.

    A context that is in use must not be loaded into: OpenSSL frees the certificate it had while a handshake that begins
    in another thread takes it, and the process ends by SIGSEGV.
    """

    current: ssl.SSLContext

    def __new__(cls) -> Self:
        """Make the context that is never used for a connection."""
        return super().__new__(cls, ssl.PROTOCOL_TLS_SERVER)

    def wrap_bio(self, *arguments: Any, **named: Any) -> ssl.SSLObject:
        """Begin a connection."""
        return self.current.wrap_bio(*arguments, **named)


class _EncryptedKeyError(Exception):
    """A password would be needed, for which OpenSSL would ask at the terminal."""


def _no_password() -> NoReturn:
    raise _EncryptedKeyError


def server_config(
    app: Callable[..., Any], *, trusted_proxies: Sequence[str], certificate: Certificate | None = None, **options: Any
) -> uvicorn.Config:
    """How uvicorn shall serve the application, with TLS if there is a certificate.

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
        ssl_context_factory=None if certificate is None else lambda *_: certificate.context,
        **options,
    )
