"""Why a connection to a Kafka broker could not be made, from what little the broken connection leaves behind.

aiokafka says "closed" of most of it. TLS alerts are those of RFC 8446, 6; certificate errors those of OpenSSL's
X509_verify_cert_error.
"""

from __future__ import annotations

from dataclasses import dataclass

from server.core.lifecycle import Reason

UNSUPPORTED_SASL_MECHANISM = 33
ILLEGAL_SASL_STATE = 34
SASL_AUTHENTICATION_FAILED = 58

_CERTIFICATE = {
    2: "kafka_certificate_untrusted",
    9: "kafka_certificate_expired",
    10: "kafka_certificate_expired",
    18: "kafka_certificate_untrusted",
    19: "kafka_certificate_untrusted",
    20: "kafka_certificate_untrusted",
    21: "kafka_certificate_untrusted",
    62: "kafka_certificate_host_name",
    64: "kafka_certificate_host_name",
}
_WHAT_TO_DO = {
    "kafka_certificate_expired": "renew the broker's certificate, and compare the clocks",
    "kafka_certificate_untrusted": "ssl.ca.location must have the CA that signed the broker's certificate",
    "kafka_certificate_host_name": "the broker must be addressed by a name in its certificate; that holds for the "
    "addresses it advertises too",
    "kafka_certificate": "see what OpenSSL says of it",
}
# What OpenSSL makes of the alerts by which a server refuses a client's certificate, or that there is none.
_CLIENT_CERTIFICATE = (
    "BAD_CERTIFICATE",
    "UNSUPPORTED_CERTIFICATE",
    "CERTIFICATE_REVOKED",
    "CERTIFICATE_EXPIRED",
    "CERTIFICATE_UNKNOWN",
    "UNKNOWN_CA",
    "CERTIFICATE_REQUIRED",
    "ACCESS_DENIED",
)
# What it makes of a server that answers in clear text.
_NO_TLS = ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "HTTP_REQUEST", "PACKET_LENGTH_TOO_LONG", "UNEXPECTED_EOF")
_TLS_ALERT = 0x1503  # the first bytes of an alert: its type, and the major version


@dataclass(frozen=True, slots=True)
class Attempt:
    """A connection that was tried: where (`host:port`), and as what."""

    server: str
    protocol: str
    mechanism: str | None = None
    client_certificate: bool = False

    @property
    def with_tls(self) -> bool:
        """Whether it was to be encrypted."""
        return self.protocol.endswith("SSL")

    @property
    def with_sasl(self) -> bool:
        """Whether it was to log in."""
        return self.protocol.startswith("SASL")


def certificate_refused(attempt: Attempt, verify_code: int, text: str) -> Reason:
    """OpenSSL does not accept the broker's certificate; `text` is what it says."""
    code = _CERTIFICATE.get(verify_code, "kafka_certificate")
    return Reason(code, f"the certificate of Kafka at {attempt.server} is refused: {text}; {_WHAT_TO_DO[code]}")


def tls_failed(attempt: Attempt, openssl: str) -> Reason:
    """TLS broke, before or after the handshake; `openssl` is OpenSSL's name for it, "" if it has none."""
    if any(name in openssl for name in _NO_TLS):
        return _no_tls(attempt)
    if any(name in openssl for name in _CLIENT_CERTIFICATE):
        if attempt.client_certificate:
            detail = "refuses the client's certificate: is it expired, and does Kafka trust the CA that signed it?"
        else:
            detail = "wants a client certificate; set ssl.certificate.location and ssl.key.location"
        return Reason("kafka_client_certificate", f"Kafka at {attempt.server} {detail} ({openssl})")
    return Reason("kafka_tls", f"TLS with Kafka at {attempt.server} failed: {openssl or 'no reason is known'}")


def handshake_cut(attempt: Attempt) -> Reason:
    """The connection was closed in the TLS handshake without a word, as Kafka's plain listeners do."""
    return _no_tls(attempt)


def _no_tls(attempt: Attempt) -> Reason:
    return Reason(
        "kafka_security_protocol",
        f"Kafka at {attempt.server} does not answer in TLS; is it a listener without, or a proxy that does not reach "
        f"Kafka? security.protocol is {attempt.protocol.lower()}",
    )


def answer_cut(attempt: Attempt, announced: int) -> Reason | None:
    """The connection was closed in an answer that announced so many bytes; None if that explains nothing."""
    if announced >> 16 == _TLS_ALERT and not attempt.with_tls:
        return Reason(
            "kafka_security_protocol",
            f"Kafka at {attempt.server} answers in TLS, but security.protocol is {attempt.protocol.lower()}; set "
            f"{'sasl_ssl' if attempt.with_sasl else 'ssl or sasl_ssl'}",
        )
    return None


def login_refused(attempt: Attempt, code: int) -> Reason | None:
    """Kafka answered the login with this error code; None if that is not about the login."""
    where, mechanism = f"Kafka at {attempt.server}", attempt.mechanism
    if code == UNSUPPORTED_SASL_MECHANISM:
        return Reason("kafka_sasl_mechanism", f"{where} does not offer sasl.mechanism {mechanism}")
    if code == ILLEGAL_SASL_STATE:
        return Reason(
            "kafka_security_protocol",
            f"{where} does not expect a login; security.protocol is {attempt.protocol.lower()}",
        )
    if code == SASL_AUTHENTICATION_FAILED:
        what = "the token" if mechanism == "OAUTHBEARER" else "the credentials"
        return Reason("kafka_authentication", f"{where} refuses {what} (sasl.mechanism {mechanism})")
    return None


def first_request_cut(attempt: Attempt) -> Reason | None:
    """The connection was closed at its first request, as Kafka does where it expects a login; None if there was one."""
    if attempt.with_sasl:
        return None
    return Reason(
        "kafka_security_protocol",
        f"Kafka at {attempt.server} closes the connection at the first request; does the listener expect a login, or "
        f"TLS? security.protocol is {attempt.protocol.lower()}",
    )


def no_token(endpoint: str, problem: str) -> Reason:
    """The token endpoint gives no token, and why."""
    return Reason("kafka_token_endpoint", f"the token endpoint {endpoint} {problem}")
