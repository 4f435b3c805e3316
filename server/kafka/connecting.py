"""What aiokafka hides of a connection that fails: why, and that a token was refused at all.

A producer's `Complaints` hear of the latest attempt to connect, whichever of aiokafka's tasks made it.
"""

from __future__ import annotations

import asyncio
import functools
import ssl
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from aiokafka.conn import AIOKafkaConnection, OAuthAuthenticator
from aiokafka.errors import BrokerResponseError, KafkaConnectionError, KafkaError, SaslAuthenticationFailed

from server.core.address import address
from server.core.kafka_connecting import (
    Attempt,
    answer_cut,
    certificate_refused,
    first_request_cut,
    handshake_cut,
    login_refused,
    tls_failed,
)
from server.kafka.errorlog import current_complaints
from server.kafka.oauth import TokenError, Tokens
from server.kafka.tls import ReloadedContext

if TYPE_CHECKING:
    from collections.abc import Iterator

    from server.core.lifecycle import Reason

_FIRST_REQUEST = 2  # the correlation id after that of ApiVersions, with which each connection begins


def connection_reason(error: BaseException, attempt: Attempt) -> Reason | None:
    """Why this attempt failed; None where the network is to blame, and what aiokafka says of it is enough."""
    reason: Reason | None = None
    cause: BaseException | None = error
    while cause is not None and reason is None:
        match cause:
            case TokenError():
                reason = cause.reason
            case BrokerResponseError():
                reason = login_refused(attempt, cause.errno)
            case ssl.SSLCertVerificationError():
                reason = certificate_refused(attempt, cause.verify_code, cause.verify_message)
            case ssl.SSLError():
                reason = tls_failed(attempt, getattr(cause, "reason", None) or type(cause).__name__)
            case asyncio.IncompleteReadError():
                reason = answer_cut(attempt, cause.expected or 0)
            case ConnectionResetError() | BrokenPipeError() | ConnectionAbortedError() if attempt.with_tls:
                reason = handshake_cut(attempt)
        cause = cause.__cause__
    return reason


def _attempt(connection: AIOKafkaConnection) -> Attempt:
    context = connection._ssl_context  # noqa: SLF001 - aiokafka has no other way to ask
    return Attempt(
        server=address(connection.host, connection.port),
        protocol=connection._security_protocol,  # noqa: SLF001
        mechanism=connection._sasl_mechanism,  # noqa: SLF001
        client_certificate=isinstance(context, ReloadedContext) and context.has_certificate,
    )


@contextmanager
def explained(connection: AIOKafkaConnection) -> Iterator[None]:
    """It connects and logs in here: let `Complaints` hear how that ends.

    Raises:
        OSError, KafkaError: it failed. By another error the task of aiokafka's that connects would end.
    """
    complaints = current_complaints()
    try:
        yield
    except Exception as error:
        complaints.note_connection(connection_reason(error, _attempt(connection)))
        provider = connection._sasl_oauth_token_provider  # noqa: SLF001 - as in `_attempt`
        if isinstance(error, SaslAuthenticationFailed) and isinstance(provider, Tokens):
            provider.refused()
        if isinstance(error, OSError | KafkaError):  # TimeoutError is an OSError
            raise
        # Such as a SCRAM server that can't prove that it knows the password.
        raise KafkaConnectionError(f"can't log in: {type(error).__name__}: {error}") from error
    complaints.note_connection(None)


def note_end(connection: AIOKafkaConnection, error: BaseException | None) -> None:
    """It ends with this error: that the server answered nothing at all has a reason, too."""
    owed = connection._requests  # noqa: SLF001 - as in `_attempt`
    first = bool(owed) and owed[0][0] == _FIRST_REQUEST
    if first and isinstance(error, asyncio.IncompleteReadError) and not error.partial:
        current_complaints().note_connection(first_request_cut(_attempt(connection)))


def notice_refused_tokens() -> None:
    """Take Kafka's word that it refuses a token for one (RFC 7628, 3.2.2); aiokafka believes that it has logged in."""
    step = OAuthAuthenticator.step

    @functools.wraps(step)
    async def answered(authenticator: OAuthAuthenticator, payload: bytes | None) -> Any:
        if payload:
            raise SaslAuthenticationFailed("the token is refused")
        return await step(authenticator, payload)

    OAuthAuthenticator.step = answered
