"""Reasons for what goes wrong in TLS and WebSocket: each says what happened, with whom, and what to do."""

from __future__ import annotations

import pytest

from server.core.transport_failures import (
    TlsError,
    foreign_answer,
    no_tls,
    tls_files,
    tls_hung_up,
    tls_reason,
    unanswered,
    websocket_protocol,
    websocket_status,
)

ADDRESS = "broker:8883"
URL = "wss://broker:443/mqtt"


def of(name: str = "", verify_code: int = 0, *, shows_certificate: bool = False, established: bool = False) -> str:
    reason = tls_reason(
        TlsError(name, verify_code, "as OpenSSL says"),
        address=ADDRESS,
        server_name="broker",
        shows_certificate=shows_certificate,
        established=established,
    )
    assert ADDRESS in reason.detail
    return f"{reason.code}: {reason.detail}"


@pytest.mark.parametrize(
    ("verify_code", "code", "said"),
    [
        (10, "mqtt_certificate_expired", "has expired"),
        (9, "mqtt_certificate_expired", "is not valid yet"),
        (62, "mqtt_certificate_host_name", "'broker'"),
        (64, "mqtt_certificate_host_name", "mqtt.tls.server_name"),
        (18, "mqtt_certificate_untrusted", "as OpenSSL says"),
        (20, "mqtt_certificate_untrusted", "mqtt.tls.ca_cert"),
    ],
)
def test_what_is_wrong_with_the_brokers_certificate_is_named(verify_code: int, code: str, said: str) -> None:
    reason = of("CERTIFICATE_VERIFY_FAILED", verify_code)
    assert reason.startswith(f"{code}: ")
    assert said in reason


def test_an_alert_about_our_certificate_says_whether_one_was_shown() -> None:
    assert of("TLSV13_ALERT_CERTIFICATE_REQUIRED").startswith("mqtt_client_certificate: ")
    assert "none was shown: set mqtt.tls.client_cert" in of("TLSV13_ALERT_CERTIFICATE_REQUIRED")
    assert "none was shown" not in of("SSLV3_ALERT_CERTIFICATE_EXPIRED", shows_certificate=True)


def test_a_server_without_tls_is_told_from_one_that_agrees_on_nothing() -> None:
    assert of("WRONG_VERSION_NUMBER").startswith("mqtt_no_tls: ")
    assert of("SSLV3_ALERT_HANDSHAKE_FAILURE").startswith("mqtt_tls: ")
    assert "or it wants a client certificate" in of("SSLV3_ALERT_HANDSHAKE_FAILURE")
    assert "or it wants a client certificate" not in of("SSLV3_ALERT_HANDSHAKE_FAILURE", shows_certificate=True)
    assert "as OpenSSL says" in of()


def test_tls_that_breaks_later_is_no_disagreement() -> None:
    assert "agree" not in of("DECRYPTION_FAILED_OR_BAD_RECORD_MAC", established=True)
    assert "broke" in of("DECRYPTION_FAILED_OR_BAD_RECORD_MAC", established=True)


@pytest.mark.parametrize(
    ("answer", "is_tls", "is_websocket", "code"),
    [
        (b"\x15\x03\x01\x00", False, False, "mqtt_tls_expected"),
        (b"\x15\x03\x01\x00", False, True, "mqtt_tls_expected"),
        (b"\x15\x03\x01\x00", True, False, None),
        (b"HTTP/1.1", False, False, "mqtt_websocket_expected"),
        (b"HTTP/1.1", True, False, "mqtt_websocket_expected"),
        (b"HTTP/1.1", True, True, None),
        (b"\x20\x02\x00\x00", False, False, None),
    ],
)
def test_a_first_answer_shows_another_protocol(answer: bytes, is_tls: bool, is_websocket: bool, code: str) -> None:
    reason = foreign_answer(ADDRESS, answer, is_tls=is_tls, is_websocket=is_websocket)
    assert (reason and reason.code) == code


@pytest.mark.parametrize(
    ("status", "location", "said"),
    [
        (301, "https://elsewhere/", "redirects to 'https://elsewhere/'"),
        (301, None, "check mqtt.host"),
        (400, None, "mqtt.tls"),
        (401, None, "credentials"),
        (403, None, "forbids"),
        (404, None, "mqtt.path"),
        (418, "https://elsewhere/", "check mqtt.host"),
    ],
)
def test_a_refused_websocket_names_status_path_and_what_to_do(status: int, location: str | None, said: str) -> None:
    reason = websocket_status(URL, status, "Phrase", location)
    assert reason.code == "mqtt_websocket_refused"
    assert f"{URL} with HTTP {status} Phrase; " in reason.detail
    assert said in reason.detail


def test_the_others_say_what_happened_and_where() -> None:
    assert "it hung up; check mqtt.port" in no_tls(ADDRESS, "it hung up").detail
    assert "mqtt.tls.client_cert" in tls_hung_up(ADDRESS, shows_certificate=False).detail
    assert "mqtt.tls.client_cert" not in tls_hung_up(ADDRESS, shows_certificate=True).detail
    assert "mqtt.tls.ca_cert (ca.pem) can't be used: gone" in tls_files("mqtt.tls.ca_cert", "ca.pem", "gone").detail
    assert "mqtt.tls.client_cert" in unanswered(ADDRESS, is_tls=True).detail
    assert "TLS (mqtt.tls)" in unanswered(ADDRESS, is_tls=False).detail
    assert f"{URL}: no frames; " in websocket_protocol(URL, "no frames").detail
