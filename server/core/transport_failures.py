"""What went wrong under MQTT, in TLS or WebSocket, as reasons for the status.

OpenSSL's names for what happened (`SSLError.reason`) and its codes for what is wrong with a certificate
(`X509_V_ERR_*`) are stable; its texts are not.
"""

from __future__ import annotations

from dataclasses import dataclass

from server.core.lifecycle import Reason

_EXPIRED, _NOT_YET_VALID = 10, 9
_HOST_NAME, _IP_ADDRESS = 62, 64
# What a server says that does not like, or misses, our certificate: TLS alerts (RFC 8446, 6.2).
_CLIENT_CERTIFICATE_ALERTS = {
    "TLSV13_ALERT_CERTIFICATE_REQUIRED": "it requires one",
    "SSLV3_ALERT_BAD_CERTIFICATE": "it calls it bad",
    "SSLV3_ALERT_UNSUPPORTED_CERTIFICATE": "it does not support its kind",
    "SSLV3_ALERT_CERTIFICATE_REVOKED": "it is revoked",
    "SSLV3_ALERT_CERTIFICATE_EXPIRED": "it has expired",
    "SSLV3_ALERT_CERTIFICATE_UNKNOWN": "it does not accept it",
    "TLSV1_ALERT_UNKNOWN_CA": "it does not trust who signed it",
    "TLSV1_ALERT_ACCESS_DENIED": "it may not connect",
}
_NOT_TLS = frozenset({"WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "HTTP_REQUEST", "PACKET_LENGTH_TOO_LONG"})
# What a TLS server answers to something else: an alert, in a record that claims some version of SSL or TLS.
_TLS_ALERT = b"\x15\x03"
_HTTP = b"HTTP/"


@dataclass(frozen=True, slots=True)
class TlsError:
    """What OpenSSL reports.

    `name` is its reason, "" if it has none; `verify_code` says what is wrong with the broker's certificate, 0 if
    nothing is, and `text` is for people.
    """

    name: str
    verify_code: int
    text: str


def tls_reason(
    error: TlsError, *, address: str, server_name: str, shows_certificate: bool, established: bool = False
) -> Reason:
    """Why TLS with the broker at this address failed.

    `shows_certificate` says whether we have one to show, `established` whether MQTT was already spoken.
    """
    if error.verify_code:
        return _certificate_reason(error, address, server_name)
    alert = _CLIENT_CERTIFICATE_ALERTS.get(error.name)
    if alert is not None:
        what = (
            "mqtt.tls.client_cert, which it can check"
            if shows_certificate
            else "none was shown: set mqtt.tls.client_cert"
        )
        return Reason(
            "mqtt_client_certificate",
            f"the broker at {address} refuses our client certificate, {alert} ({error.name}); {what}",
        )
    said = error.name or error.text
    if established:
        return Reason(
            "mqtt_tls", f"TLS with the broker at {address} broke ({said}); does something in between interfere?"
        )
    if error.name in _NOT_TLS:
        return no_tls(address, f"it answers with something else than TLS ({said})")
    hint = "" if shows_certificate else ", or it wants a client certificate"
    return Reason(
        "mqtt_tls",
        f"no TLS with the broker at {address} ({said}): it and this side agree on no version, cipher, ALPN protocol or "
        f"server name{hint}",
    )


def _certificate_reason(error: TlsError, address: str, server_name: str) -> Reason:
    of_broker = f"the certificate of the broker at {address}"
    if error.verify_code in {_EXPIRED, _NOT_YET_VALID}:
        what = "has expired" if error.verify_code == _EXPIRED else "is not valid yet"
        return Reason(
            "mqtt_certificate_expired", f"{of_broker}, or of who signed it, {what}; renew it, or check this clock"
        )
    if error.verify_code in {_HOST_NAME, _IP_ADDRESS}:
        return Reason(
            "mqtt_certificate_host_name",
            f"{of_broker} is not made out to {server_name!r}; connect to a name it has, or set mqtt.tls.server_name",
        )
    return Reason(
        "mqtt_certificate_untrusted",
        f"{of_broker} is not signed by an authority we trust ({error.text}); mqtt.tls.ca_cert must be of who signed it",
    )


def no_tls(address: str, what: str) -> Reason:
    """The port was spoken to in TLS and does not seem to know it."""
    return Reason(
        "mqtt_no_tls",
        f"no TLS with the broker at {address}: {what}; check mqtt.port (often 8883 or 443 with TLS), or remove "
        "mqtt.tls",
    )


def tls_hung_up(address: str, *, shows_certificate: bool) -> Reason:
    """The broker closed the connection in the handshake, without an alert that says why."""
    hint = "" if shows_certificate else ", unless it wants a client certificate (mqtt.tls.client_cert)"
    return no_tls(address, f"it closed the connection in the handshake{hint}")


def tls_files(key: str, files: str, what: str) -> Reason:
    """A file that `mqtt.tls` names can't be used; `key` is the setting, or several."""
    return Reason("mqtt_tls_files", f"{key} ({files}) can't be used: {what}; mended files are taken up by themselves")


def foreign_answer(address: str, answer: bytes, *, is_tls: bool, is_websocket: bool) -> Reason | None:
    """Why a broker's first bytes are not of what we speak, if another protocol can be told from them; None if not."""
    if answer.startswith(_TLS_ALERT) and not is_tls:
        return Reason(
            "mqtt_tls_expected", f"the broker at {address} wants TLS on this port; set mqtt.tls, or correct mqtt.port"
        )
    if answer.startswith(_HTTP) and not is_websocket:
        return Reason(
            "mqtt_websocket_expected",
            f"the broker at {address} answers with HTTP: the port is for WebSocket; set mqtt.transport: websocket, or "
            "correct mqtt.port",
        )
    return None


def unanswered(address: str, *, is_tls: bool) -> Reason:
    """The broker closed the connection and had not sent a byte: so do many to which the wrong protocol is spoken."""
    wanted = "a client certificate (mqtt.tls.client_cert)" if is_tls else "TLS (mqtt.tls)"
    return Reason(
        "mqtt_unanswered",
        f"the broker at {address} closed the connection without an answer; it may want {wanted}, WebSocket "
        "(mqtt.transport), or another version of MQTT (mqtt.protocol) on this port",
    )


_STATUS_HINTS = {
    400: "the port may want TLS: set mqtt.tls",
    401: "it wants credentials that MQTT does not carry, such as of a proxy",
    403: "a rule of it, or of a proxy, forbids this client",
    404: "check mqtt.path",
    426: "it wants another version of the protocol",
    429: "it limits the rate of connections",
    502: "a proxy does not reach the broker",
    503: "it is not available, or a proxy does not reach it",
    504: "a proxy does not reach the broker",
}


def websocket_status(url: str, status: int, phrase: str, location: str | None) -> Reason:
    """The answer to the request for a WebSocket was another than 101."""
    hint = _STATUS_HINTS.get(status, "check mqtt.host, mqtt.port and mqtt.path")
    if location is not None and 300 <= status < 400:  # noqa: PLR2004 - redirections (RFC 9110, 15.4)
        hint = f"it redirects to {location!r}, which is not followed: connect there, by mqtt.host, port, path and tls"
    return Reason(
        "mqtt_websocket_refused",
        f"the broker refuses the WebSocket {url} with HTTP {status} {phrase}".rstrip() + f"; {hint}",
    )


def websocket_protocol(url: str, what: str) -> Reason:
    """The other side does not keep to RFC 6455, or to MQTT's use of it (MQTT 5.0, 6)."""
    return Reason(
        "mqtt_websocket_protocol",
        f"no MQTT over the WebSocket {url}: {what}; check mqtt.port and mqtt.path, and that it is a broker's",
    )
