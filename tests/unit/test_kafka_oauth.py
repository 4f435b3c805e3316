"""Tokens from an endpoint: one request for all, renewed in time, and no secret in what goes wrong."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
import trustme

from server.core.kafka_options import OAuthOptions, SslFiles
from server.kafka import oauth
from server.kafka.errorlog import listen
from server.kafka.oauth import TokenError, Tokens
from tests.tokenendpoint import CLIENT_ID, CLIENT_SECRET, TokenEndpoint

if TYPE_CHECKING:
    from pathlib import Path


class Clock:
    """A clock that the test turns."""

    now = 1_000.0

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(oauth, "time", clock)
    return clock


def _endpoint(**options: Any) -> TokenEndpoint:
    numbers = Counter[str]()

    def token() -> str:
        numbers["given"] += 1
        return f"token-{numbers['given']}"

    return TokenEndpoint(token, **options)


def _tokens(endpoint: TokenEndpoint, *, secret: str = CLIENT_SECRET, **more: Any) -> Tokens:
    return Tokens(OAuthOptions(endpoint.url, CLIENT_ID, secret, **more))


async def _refused(tokens: Tokens) -> str:
    with pytest.raises(TokenError) as refused:
        await tokens.token()
    assert refused.value.reason.code == "kafka_token_endpoint"
    assert str(refused.value).endswith(refused.value.reason.detail)
    assert "hunter2" not in str(refused.value)  # neither the secret nor the URL's query
    return refused.value.reason.detail


async def test_many_connections_that_log_in_at_once_share_one_request(clock: Clock) -> None:
    del clock
    endpoint = _endpoint()
    async with endpoint.serving():
        tokens = _tokens(endpoint, scope="write", extensions={"a": "b"})
        assert set(await asyncio.gather(*(tokens.token() for _ in range(50)))) == {"token-1"}
        assert tokens.extensions() == {"a": "b"}
    assert endpoint.asked == [{"grant_type": ["client_credentials"], "scope": ["write"]}]


async def test_a_token_is_renewed_when_most_of_its_life_is_over(clock: Clock) -> None:
    endpoint = _endpoint(lifetime=100)
    async with endpoint.serving():
        tokens = _tokens(endpoint)
        assert await tokens.token() == "token-1"
        clock.now += 79
        assert await tokens.token() == "token-1"
        clock.now += 1
        assert await tokens.token() == "token-2"
    assert "scope" not in endpoint.asked[0]


async def test_a_token_that_can_not_be_renewed_is_used_to_its_end(clock: Clock) -> None:
    endpoint = _endpoint(lifetime=100)
    async with endpoint.serving():
        tokens = _tokens(endpoint)
        await tokens.token()
        endpoint.answer = (503, b"")
        clock.now += 99
        assert await tokens.token() == "token-1"
        clock.now += 1
        assert "answered 503" in await _refused(tokens)


async def test_a_failure_is_everybodys_for_a_moment_and_then_it_is_asked_again(clock: Clock) -> None:
    endpoint = _endpoint(answer=(401, b'{"error": "invalid_client"}'))
    async with endpoint.serving():
        tokens = _tokens(endpoint)
        failed = await asyncio.gather(*(tokens.token() for _ in range(50)), return_exceptions=True)
        assert {type(error) for error in failed} == {TokenError}
        assert len(endpoint.asked) == 1
        clock.now += 1.1
        assert "it says 'invalid_client'" in await _refused(tokens)
        assert len(endpoint.asked) == 2
        endpoint.answer = "a token"
        clock.now += 1.1
        assert await tokens.token() == "token-1"


async def test_a_connection_that_gives_up_does_not_take_the_others_token_away(clock: Clock) -> None:
    del clock
    endpoint = _endpoint(answer=None)
    async with endpoint.serving():
        tokens = _tokens(endpoint)
        first, second = asyncio.create_task(tokens.token()), asyncio.create_task(tokens.token())
        async with asyncio.timeout(10):
            while not endpoint.asked:
                await asyncio.sleep(0.01)
        endpoint.answer = "a token"
        first.cancel()
        assert await second == "token-1"


async def test_a_token_that_kafka_refuses_is_given_up_unless_it_is_new(clock: Clock) -> None:
    endpoint = _endpoint()
    async with endpoint.serving():
        tokens = _tokens(endpoint)
        await tokens.token()
        tokens.refused()
        assert await tokens.token() == "token-1"
        clock.now += 5
        tokens.refused()
        assert await tokens.token() == "token-2"


async def test_a_wrong_secret_is_the_endpoints_word(clock: Clock) -> None:
    del clock
    endpoint = _endpoint()
    async with endpoint.serving():
        detail = await _refused(_tokens(endpoint, secret="hunter2"))
    shown = endpoint.url.partition("?")[0]
    assert detail == f"the token endpoint {shown} answered 401, it says 'invalid_client'"


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ((302, b""), "answered 302"),
        ((200, b"<html>hunter2"), "is it the URL of a token endpoint?"),
        ((200, b'{"access_token": "' + b"a" * 300_000 + b'"}'), "more than 262144 bytes"),
    ],
)
async def test_an_answer_that_is_no_token_is_refused(clock: Clock, answer: tuple[int, bytes], said: str) -> None:
    del clock
    endpoint = _endpoint(answer=answer)
    async with endpoint.serving():
        assert said in await _refused(_tokens(endpoint))


async def test_silence_ends_at_a_limit_and_is_told_of_while_it_lasts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(oauth, "TIMEOUT_SECONDS", 0.2)
    endpoint = _endpoint(answer=None)
    complaints = listen()
    async with endpoint.serving():
        assert "did not answer within 0.2 s" in await _refused(_tokens(endpoint))
    reason = complaints.connection()
    assert reason is not None
    assert reason.detail.endswith("has not answered yet")


async def test_an_endpoint_that_is_away_can_not_be_reached() -> None:
    endpoint = _endpoint()
    endpoint.url = "http://127.0.0.1:1/token"
    assert "can't be reached" in await _refused(_tokens(endpoint))


async def test_the_endpoints_certificate_is_checked(tmp_path: Path) -> None:
    authority, ca = trustme.CA(), tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(ca))
    endpoint = _endpoint()
    async with endpoint.serving(authority):
        assert "CERTIFICATE_VERIFY_FAILED" in await _refused(_tokens(endpoint))
        assert await _tokens(endpoint, https=SslFiles(ca_location=str(ca))).token() == "token-1"
        detail = await _refused(_tokens(endpoint, https=SslFiles(ca_location=str(tmp_path / "missing.pem"))))
    assert "missing.pem" in detail
    assert "https.ca" in detail
