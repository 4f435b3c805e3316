"""TLS to Kafka: the PEM files that librdkafka's option names point to, as an SSL context that follows them."""

from __future__ import annotations

import contextlib
import os
import ssl
import tempfile
from typing import TYPE_CHECKING, Any, Self

import structlog

from server.files import version

if TYPE_CHECKING:
    from collections.abc import Iterator

    from server.core.kafka_options import SslFiles


class ConfigurationError(Exception):
    """No producer can be made of what `kafka` in the configuration file says; the message says which part."""


_log = structlog.get_logger()


class ReloadedContext(ssl.SSLContext):
    """An SSL context that makes each connection with what the PEM files hold at that time.

    Certificates are renewed while the service runs, and aiokafka keeps the context of a producer as long as that lives.
    """

    def __new__(cls, files: SslFiles) -> Self:
        """Make the context itself, which is never used for a connection."""
        del files
        return super().__new__(cls, ssl.PROTOCOL_TLS_CLIENT)

    def __init__(self, files: SslFiles) -> None:
        self._files = files
        self._seen: object = None
        self._current: ssl.SSLContext | None = None
        self._told = ""

    @property
    def has_certificate(self) -> bool:
        """Whether there is a client's certificate."""
        return bool(self._files.certificate_location or self._files.certificate_pem)

    def current(self) -> ssl.SSLContext:
        """The context for the files as they are now.

        Raises:
            ConfigurationError: a file can't be read, or its content is not what it should be.
        """
        seen = self._look()
        if self._current is None or seen != self._seen:
            self._current, self._seen, self._told = ssl_context(self._files), seen, ""
        return self._current

    def wrap_bio(self, *arguments: Any, **named: Any) -> ssl.SSLObject:
        """Begin a connection; with files that can't be used just now, as the one before."""
        try:
            context = self.current()
        except ConfigurationError as error:
            if self._current is None:
                raise ssl.SSLError(str(error)) from error
            context = self._current
            if self._told != str(error):
                self._told = str(error)
                _log.warning("certificates_not_reloaded", detail=self._told)
        return context.wrap_bio(*arguments, **named)

    def _look(self) -> object:
        files = self._files
        paths = (files.ca_location, files.certificate_location, files.key_location, files.crl_location)
        return [version(path) for path in paths if path]


def ssl_context(files: SslFiles, *, ca_option: str = "ssl.ca") -> ssl.SSLContext:
    """The SSL context for these PEM files; `ca_option` is how the option for the CAs begins.

    Raises:
        ConfigurationError: a file can't be read, or its content is not what it should be.
    """
    with _naming(ca_option, files.ca_location):
        folder = files.ca_location if files.ca_location and os.path.isdir(files.ca_location) else None  # noqa: PTH112
        cafile = None if folder else files.ca_location
        context = ssl.create_default_context(cafile=cafile, capath=folder, cadata=files.ca_pem)
    context.check_hostname = files.check_hostname and files.verify
    if not files.verify:
        context.verify_mode = ssl.CERT_NONE
    with contextlib.ExitStack() as stack:
        certificate = files.certificate_location or _as_file(files.certificate_pem, stack)
        key = files.key_location or _as_file(files.key_pem, stack)
        if certificate:
            with _naming("ssl.certificate and ssl.key", files.certificate_location, files.key_location):
                # Never None: OpenSSL would ask the terminal for the password of a key that has one.
                context.load_cert_chain(certificate, key, files.key_password or "")
    if files.ciphers:
        with _naming("ssl.cipher.suites"):
            context.set_ciphers(files.ciphers)
    if files.crl_location:
        with _naming("ssl.crl.location", files.crl_location):
            context.load_verify_locations(files.crl_location)
        context.verify_flags |= ssl.VerifyFlags.VERIFY_CRL_CHECK_LEAF
    return context


@contextlib.contextmanager
def _naming(option: str, *files: str | None) -> Iterator[None]:
    """Name the option and its files in what goes wrong here: OpenSSL names neither."""
    named = " and ".join(filter(None, files))
    try:
        yield
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError; ValueError: a password that is too long
        what = getattr(error, "reason", None) or getattr(error, "strerror", None) or error
        where = f" ({named})" if named else ""
        raise ConfigurationError(f"{option} in kafka.config{where} can't be used: {what}") from error


def _as_file(pem: str | None, stack: contextlib.ExitStack) -> str | None:
    """A file with this text, for ssl takes a certificate in no other way; it goes with the stack."""
    if pem is None:
        return None
    file = stack.enter_context(tempfile.NamedTemporaryFile("w", suffix=".pem"))  # noqa: SIM115 - the stack ends it
    file.write(pem)
    file.flush()
    return file.name
