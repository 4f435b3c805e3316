"""TLS to the MQTT broker: SSL contexts of the files that `mqtt.tls` names, and what errors of TLS mean."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path
from typing import TYPE_CHECKING

from server.core.transport_failures import TlsError, tls_files, tls_reason
from server.files import Version, version
from server.mqtt.port import ConnectionEndedError, Ended

if TYPE_CHECKING:
    from server.core.connections import MqttConnection, MqttTls
    from server.core.lifecycle import Reason

# How the end of the connection shows where the broker does not say goodbye in TLS, and few do.
_RAGGED_ENDS = frozenset({"UNEXPECTED_EOF_WHILE_READING", "APPLICATION_DATA_AFTER_CLOSE_NOTIFY", "KRB5_S_INIT"})
_Versions = tuple[Version | None, ...]


class Contexts:
    """SSL contexts, of one event loop.

    Files are looked at for each connection and read only if they have changed: a thousand mappings that come back
    together share one reading of the authorities, which takes 20 ms for the system's.
    """

    def __init__(self) -> None:
        self._lock = asyncio.Lock()
        self._known: dict[MqttTls, tuple[_Versions, ssl.SSLContext]] = {}

    async def get(self, tls: MqttTls) -> ssl.SSLContext:
        """The context for these files as they are now.

        Raises:
            ConnectionEndedError: a file can't be read, or its content is not what it should be.
        """
        async with self._lock:
            return await asyncio.to_thread(self._current, tls)

    def _current(self, tls: MqttTls) -> ssl.SSLContext:
        # Before they are read: what changes meanwhile differs at the next look.
        versions = _versions(tls)
        known = self._known.get(tls)
        if known is not None and known[0] == versions:
            return known[1]
        context = ssl_context(tls)
        self._known[tls] = versions, context
        return context


def ssl_context(tls: MqttTls) -> ssl.SSLContext:
    """Read the files into a new context.

    Raises:
        ConnectionEndedError: a file can't be read, or its content is not what it should be.
    """
    _see_that_it_opens("mqtt.tls.ca_cert", tls.ca_cert)
    _see_that_it_opens("mqtt.tls.client_cert", tls.client_cert)
    _see_that_it_opens("mqtt.tls.client_key", tls.client_key)
    try:
        context = ssl.create_default_context(cafile=tls.ca_cert)
    except OSError as error:
        what = f"it holds no certificate in PEM format ({_said(error)})"
        raise _unusable("mqtt.tls.ca_cert", str(tls.ca_cert), what) from error
    if tls.client_cert is not None:
        password = tls.client_key_password
        try:
            # Never None: OpenSSL would ask the terminal for the password of a key that has one.
            context.load_cert_chain(
                tls.client_cert, tls.client_key, password.get_secret_value() if password is not None else ""
            )
        except (OSError, ValueError) as error:  # ValueError: a password too long for OpenSSL
            files = f"{tls.client_cert} and {tls.client_key}"
            what = (
                f"they are not a certificate and its key in PEM format, or mqtt.tls.client_key_password is not the "
                f"key's ({_said(error)})"
            )
            raise _unusable("mqtt.tls.client_cert and client_key", files, what) from error
    if tls.insecure_skip_verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if tls.alpn:
        context.set_alpn_protocols(list(tls.alpn))
    return context


def reason_of(error: ssl.SSLError, broker: MqttConnection, *, established: bool = False) -> Reason:
    """Why TLS with this broker failed, or broke when MQTT was already `established`."""
    return tls_reason(
        TlsError(
            name=error.reason or "",
            verify_code=getattr(error, "verify_code", 0),
            text=str(getattr(error, "verify_message", "") or error.strerror or error),
        ),
        address=broker.address,
        server_name=broker.server_name,
        shows_certificate=broker.tls is not None and broker.tls.client_cert is not None,
        established=established,
    )


def is_end(error: BaseException | None) -> bool:
    """Whether this is how TLS reports that the broker closed the connection."""
    return isinstance(error, ssl.SSLEOFError | ssl.SSLZeroReturnError) or (
        isinstance(error, ssl.SSLError) and error.reason in _RAGGED_ENDS
    )


def _versions(tls: MqttTls) -> _Versions:
    files: list[str | None] = [tls.ca_cert, tls.client_cert, tls.client_key]
    if tls.ca_cert is None:
        system = ssl.get_default_verify_paths()
        files += [system.cafile, system.capath]
    return tuple(None if file is None else version(file) for file in files)


def _see_that_it_opens(key: str, file: str | None) -> None:
    if file is None:
        return
    try:
        with Path(file).open("rb"):
            pass
    except OSError as error:
        raise _unusable(key, file, error.strerror or str(error)) from error


def _unusable(key: str, files: str, what: str) -> ConnectionEndedError:
    return ConnectionEndedError(Ended(tls_files(key, files, what)))


def _said(error: Exception) -> str:
    return str(getattr(error, "reason", None) or getattr(error, "strerror", None) or error)
