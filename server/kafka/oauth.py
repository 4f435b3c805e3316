"""Tokens for OAUTHBEARER, by client credentials from a token endpoint: one for all of a cluster's producers."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from aiokafka.abc import AbstractTokenProvider
from aiokafka.errors import KafkaError

from server.core.kafka_connecting import no_token
from server.core.token_answer import RENEW_AFTER, TokenRefusedError, read_token
from server.kafka.errorlog import current_complaints
from server.kafka.tls import ConfigurationError, ssl_context

if TYPE_CHECKING:
    from collections.abc import Mapping

    from server.core.kafka_options import OAuthOptions
    from server.core.lifecycle import Reason
    from server.core.token_answer import Token

TIMEOUT_SECONDS = 5.0
_LONGEST_ANSWER = 256 * 1024
# Hundreds of producers that start at once make one request, also when it fails.
_REMEMBER_FAILURE_SECONDS = 1.0
# A younger token is not given up because Kafka refuses it: a new one would fare no better.
_REFUSED_AFTER_SECONDS = 5.0


class TokenError(KafkaError):  # type: ignore[misc]
    """The token endpoint gives no token."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason.detail)
        self.reason = reason


class Tokens(AbstractTokenProvider):  # type: ignore[misc]
    """Gives each connection that logs in a token which is valid, and asks the endpoint only when it must."""

    def __init__(self, options: OAuthOptions) -> None:
        import httpx  # noqa: PLC0415, F401 - nobody else needs it; at the first token it would hold up the event loop

        url = urlsplit(options.endpoint)
        self._options = options
        self._shown = f"{url.scheme}://{url.netloc}{url.path}"  # a query may hold anything
        self._token: Token | None = None
        self._asked_at = 0.0
        self._failure: tuple[float, Reason] | None = None
        self._asking = asyncio.Lock()

    def extensions(self) -> Mapping[str, str]:
        """What Kafka is told besides the token."""
        return self._options.extensions

    async def token(self) -> str:
        """A token; it is renewed when most of its life is over, and used to the end if that fails.

        Raises:
            TokenError: there is none.
        """
        token = self._token
        if token is None or self._age() >= token.lifetime * RENEW_AFTER:
            current_complaints().note_connection(no_token(self._shown, "has not answered yet"))
            async with self._asking:
                token = await self._renewed()
        return token.value

    def refused(self) -> None:
        """Kafka refuses the token: the next connection gets another, unless this one is new."""
        if self._age() >= _REFUSED_AFTER_SECONDS:
            self._token = None

    def _age(self) -> float:
        return time.monotonic() - self._asked_at

    async def _renewed(self) -> Token:
        """A new token, unless another connection has just asked for one."""
        if self._token is not None and self._age() < self._token.lifetime * RENEW_AFTER:
            return self._token
        now = time.monotonic()
        if self._failure is None or now - self._failure[0] > _REMEMBER_FAILURE_SECONDS:
            try:
                token = await self._ask()
            except TokenRefusedError as error:
                self._failure = (time.monotonic(), no_token(self._shown, str(error)))
            else:
                self._token, self._asked_at, self._failure = token, now, None
                return token
        if self._token is None or self._age() >= self._token.lifetime:
            self._token = None
            raise TokenError(self._failure[1])
        return self._token

    async def _ask(self) -> Token:
        import httpx  # noqa: PLC0415 - loaded already

        options = self._options
        form = {"grant_type": "client_credentials"} | ({"scope": options.scope} if options.scope else {})
        body = bytearray()
        try:
            context = ssl_context(options.https, ca_option="https.ca")
            async with (
                asyncio.timeout(TIMEOUT_SECONDS),
                httpx.AsyncClient(verify=context, timeout=TIMEOUT_SECONDS) as client,
                client.stream(
                    "POST",
                    options.endpoint,
                    data=form,
                    auth=httpx.BasicAuth(options.client_id, options.client_secret),
                    headers={"Accept": "application/json"},
                ) as response,
            ):
                async for part in response.aiter_bytes():
                    body += part
                    if len(body) > _LONGEST_ANSWER:
                        raise TokenRefusedError(f"answered with more than {_LONGEST_ANSWER} bytes")
        except (TimeoutError, httpx.TimeoutException):
            raise TokenRefusedError(f"did not answer within {TIMEOUT_SECONDS:g} s") from None
        except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
            raise TokenRefusedError(f"can't be reached: {error or type(error).__name__}") from None
        except ConfigurationError as error:
            raise TokenRefusedError(f"can't be asked: {error}") from None
        return read_token(response.status_code, bytes(body), now=time.time(), secret=options.client_secret)
