"""Why a connection to Kafka fails, from what is left of it."""

from __future__ import annotations

import asyncio
import ssl
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
from aiokafka.conn import AIOKafkaConnection, OAuthAuthenticator, create_conn
from aiokafka.errors import KafkaConnectionError, NodeNotReadyError, SaslAuthenticationFailed, for_code

import server.kafka.producer  # noqa: F401 - it wraps aiokafka's connections
from server.core.kafka_connecting import (
    Attempt,
    answer_cut,
    certificate_refused,
    first_request_cut,
    handshake_cut,
    login_refused,
    no_token,
    tls_failed,
)
from server.core.kafka_options import OAuthOptions
from server.kafka.connecting import connection_reason
from server.kafka.connection import Connection
from server.kafka.errorlog import listen
from server.kafka.oauth import TokenError, Tokens
from tests.sockets import reset_on_close

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

PLAIN = Attempt("k:1", "PLAINTEXT")
TLS = Attempt("k:1", "SSL")
SASL = Attempt("k:1", "SASL_PLAINTEXT", "SCRAM-SHA-512")
SASL_TLS = Attempt("k:1", "SASL_SSL", "OAUTHBEARER", client_certificate=True)


@pytest.mark.parametrize(
    ("number", "code", "advice"),
    [
        (9, "kafka_certificate_expired", "clocks"),
        (10, "kafka_certificate_expired", "renew"),
        *((number, "kafka_certificate_untrusted", "ssl.ca.location") for number in (2, 18, 19, 20, 21)),
        *((number, "kafka_certificate_host_name", "advertises") for number in (62, 64)),
        (23, "kafka_certificate", "OpenSSL"),
    ],
)
def test_a_certificate_that_openssl_refuses(number: int, code: str, advice: str) -> None:
    reason = certificate_refused(TLS, number, "it is bad")
    assert reason.code == code
    assert reason.detail.startswith("the certificate of Kafka at k:1 is refused: it is bad; ")
    assert advice in reason.detail


@pytest.mark.parametrize(
    ("attempt", "openssl", "code", "said"),
    [
        (TLS, "WRONG_VERSION_NUMBER", "kafka_security_protocol", "security.protocol is ssl"),
        (TLS, "SSLV3_ALERT_BAD_CERTIFICATE", "kafka_client_certificate", "wants a client certificate; set"),
        (SASL_TLS, "TLSV1_ALERT_UNKNOWN_CA", "kafka_client_certificate", "refuses the client's certificate"),
        (TLS, "TLSV13_ALERT_CERTIFICATE_REQUIRED", "kafka_client_certificate", "ssl.certificate.location"),
        (TLS, "NO_PROTOCOLS_AVAILABLE", "kafka_tls", "failed: NO_PROTOCOLS_AVAILABLE"),
        (TLS, "", "kafka_tls", "no reason is known"),
    ],
)
def test_tls_that_breaks(attempt: Attempt, openssl: str, code: str, said: str) -> None:
    reason = tls_failed(attempt, openssl)
    assert reason.code == code
    assert "k:1" in reason.detail
    assert said in reason.detail


def test_a_handshake_that_is_cut_off_is_one_with_a_listener_without_tls() -> None:
    assert handshake_cut(SASL_TLS).code == "kafka_security_protocol"
    assert "security.protocol is sasl_ssl" in handshake_cut(SASL_TLS).detail


def test_an_answer_in_tls_is_known_by_what_it_announces() -> None:
    plain, sasl = answer_cut(PLAIN, 0x15030302), answer_cut(SASL, 0x15030100)
    assert plain is not None
    assert sasl is not None
    assert plain.detail.endswith("security.protocol is plaintext; set ssl or sasl_ssl")
    assert sasl.detail.endswith("security.protocol is sasl_plaintext; set sasl_ssl")
    assert answer_cut(PLAIN, 1000) is None
    assert answer_cut(TLS, 0x15030302) is None


@pytest.mark.parametrize(
    ("attempt", "number", "code", "said"),
    [
        (SASL, 33, "kafka_sasl_mechanism", "does not offer sasl.mechanism SCRAM-SHA-512"),
        (SASL, 34, "kafka_security_protocol", "does not expect a login; security.protocol is sasl_plaintext"),
        (SASL, 58, "kafka_authentication", "refuses the credentials (sasl.mechanism SCRAM-SHA-512)"),
        (SASL_TLS, 58, "kafka_authentication", "refuses the token"),
    ],
)
def test_a_login_that_kafka_refuses(attempt: Attempt, number: int, code: str, said: str) -> None:
    reason = login_refused(attempt, number)
    assert reason is not None
    assert reason.code == code
    assert said in reason.detail


def test_other_errors_of_kafka_are_not_about_the_login() -> None:
    assert login_refused(SASL, 35) is None


def test_a_first_request_that_is_cut_off_hints_at_a_login_where_there_was_none() -> None:
    reason = first_request_cut(TLS)
    assert reason is not None
    assert "does the listener expect a login, or TLS? security.protocol is ssl" in reason.detail
    assert first_request_cut(SASL) is None


def _caused(error: BaseException, cause: BaseException) -> BaseException:
    error.__cause__ = cause
    return error


def _certificate_error() -> ssl.SSLCertVerificationError:
    error = ssl.SSLCertVerificationError()
    error.verify_code, error.verify_message = 10, "certificate has expired"
    return error


@pytest.mark.parametrize(
    ("error", "attempt", "code"),
    [
        (TokenError(no_token("https://t", "is down")), SASL_TLS, "kafka_token_endpoint"),
        (SaslAuthenticationFailed("hunter2"), SASL, "kafka_authentication"),
        (_certificate_error(), TLS, "kafka_certificate_expired"),
        (ssl.SSLError(1, "[X509] hunter2"), TLS, "kafka_tls"),
        (_caused(KafkaConnectionError("closed"), _certificate_error()), TLS, "kafka_certificate_expired"),
        (
            _caused(KafkaConnectionError("closed"), asyncio.IncompleteReadError(b"\x02", 0x15030302)),
            PLAIN,
            "kafka_security_protocol",
        ),
        (ConnectionResetError(), TLS, "kafka_security_protocol"),
    ],
)
def test_the_reason_is_found_behind_what_aiokafka_says(error: BaseException, attempt: Attempt, code: str) -> None:
    reason = connection_reason(error, attempt)
    assert reason is not None
    assert reason.code == code
    assert "hunter2" not in reason.detail


@pytest.mark.parametrize(
    "error",
    [
        ConnectionRefusedError(),
        ConnectionResetError(),
        TimeoutError(),
        NodeNotReadyError(),
        for_code(35)(),
        _caused(KafkaConnectionError("closed"), asyncio.IncompleteReadError(b"", 4)),
        _caused(KafkaConnectionError("closed"), asyncio.IncompleteReadError(b"", None)),
    ],
)
def test_the_network_is_left_to_aiokafkas_own_words(error: BaseException) -> None:
    assert connection_reason(error, PLAIN) is None


# --- aiokafka's connections -------------------------------------------------------------------------------------------


@asynccontextmanager
async def _listener(answer: bytes) -> AsyncIterator[int]:
    """Listen on a port, and answer the first bytes of each connection with this and the end."""
    serving: list[asyncio.Task[None] | None] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        serving.append(asyncio.current_task())
        await reader.read(4)
        writer.write(answer)
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        await server.wait_closed()
        await asyncio.gather(*filter(None, serving), return_exceptions=True)


async def test_a_connection_that_fails_says_why_and_one_that_succeeds_takes_it_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    complaints = listen()
    async with _listener(bytes.fromhex("15030300020250")) as port:
        with pytest.raises(KafkaConnectionError):
            await create_conn("127.0.0.1", port)
        reason = complaints.connection()
        assert reason is not None
        assert reason.code == "kafka_security_protocol"
        assert f"127.0.0.1:{port} answers in TLS" in reason.detail

        async def versions(_: AIOKafkaConnection) -> None:
            pass

        monkeypatch.setattr(AIOKafkaConnection, "_do_version_lookup", versions)
        connection = await create_conn("127.0.0.1", port)
        assert complaints.connection() is None
        await connection.close()


async def test_a_reset_is_not_reported_as_an_error_that_nobody_retrieved() -> None:
    """The event loop keeps it in a future, which its protocol retrieves when it is deleted: too late, perhaps."""
    reported = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context))

    async def reset(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(4)
        reset_on_close(writer.get_extra_info("socket"))
        writer.transport.abort()

    async with await asyncio.start_server(reset, "127.0.0.1", 0) as server:
        connection = Connection("127.0.0.1", server.sockets[0].getsockname()[1])
        with pytest.raises(KafkaConnectionError) as failed:
            await connection.connect()
    assert isinstance(failed.value.__cause__, ConnectionResetError)
    del connection._protocol._closed
    assert reported == []


async def test_an_error_that_aiokafka_does_not_expect_is_one_of_the_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    """Outside of a test it is a Kafka that can't prove that it knows the password."""

    async def unproven(_: AIOKafkaConnection) -> None:
        raise ValueError("Server sent wrong signature!")

    monkeypatch.setattr(AIOKafkaConnection, "_do_version_lookup", unproven)
    async with _listener(b"") as port:
        with pytest.raises(KafkaConnectionError, match="can't log in: ValueError: Server sent wrong signature!"):
            await create_conn("127.0.0.1", port)


async def test_kafkas_answer_to_a_token_is_a_refusal_and_the_token_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """It tells the provider, and aiokafka, which would take the answer for success."""
    tokens = Tokens(OAuthOptions("https://t", "c", "s"))
    given_up = []
    monkeypatch.setattr(tokens, "refused", lambda: given_up.append(True))

    async def token() -> str:
        return "abc"

    monkeypatch.setattr(tokens, "token", token)

    async def login(_: AIOKafkaConnection) -> None:
        authenticator = OAuthAuthenticator(sasl_oauth_token_provider=tokens)
        assert await authenticator.step(None) == (b"n,,\x01auth=Bearer abc\x01\x01", True)
        assert await authenticator.step(b"") is None
        await authenticator.step(b'{"status": "invalid_token"}')

    monkeypatch.setattr(AIOKafkaConnection, "_do_version_lookup", login)
    async with _listener(b"") as port:
        with pytest.raises(SaslAuthenticationFailed):
            await create_conn("127.0.0.1", port, sasl_mechanism="OAUTHBEARER", sasl_oauth_token_provider=tokens)
    assert given_up == [True]
