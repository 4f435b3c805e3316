"""TLS to Kafka: the PEM files that librdkafka's option names point to, as an SSL context."""

from __future__ import annotations

import contextlib
import ssl
import tempfile
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from server.core.kafka_options import SslFiles


class ConfigurationError(Exception):
    """No producer can be made of what `kafka` in the configuration file says; the message says which part."""


def ssl_context(files: SslFiles) -> ssl.SSLContext:
    """The SSL context for these PEM files.

    Raises:
        ConfigurationError: a file can't be read, or its content is not what it should be.
    """
    with _naming("ssl.ca", files.ca_location):
        context = ssl.create_default_context(cafile=files.ca_location, cadata=files.ca_pem)
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
    except OSError as error:  # ssl.SSLError is one
        what = getattr(error, "reason", None) or error.strerror or error
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
