"""Tokens as operators use them: by the command line beside a running service, from files, over TLS."""

from __future__ import annotations

import asyncio
import os
import ssl
import subprocess
import sys
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import trustme

from server.core.tokens import hash_of
from tests.brokers import KafkaCluster, MqttBroker
from tests.brokers.process import free_port
from tests.service import Service

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

ADMIN = "fedcba9876543210" * 4
EVENTS = "/api/v1/events"
# What the README states, with room for a machine that has other work.
NOTICED_WITHIN = 30.0
START_TIMEOUT = 90.0


@asynccontextmanager
async def running(folder: Path, **env: str) -> AsyncIterator[Service]:
    """Run a service without brokers and without mappings: nothing here needs them."""
    service = Service(
        folder,
        mqtt_broker=MqttBroker("127.0.0.1", free_port()),
        kafka_broker=KafkaCluster(f"127.0.0.1:{free_port()}"),
        env={"MKF_LOG_LEVEL": "debug", **env},
    )
    async with service:
        if "MKF_TLS_CERT" not in env:
            await service.wait_ready(START_TIMEOUT)
        yield service


async def mkf(service: Service, *arguments: str) -> str:
    """Run `mkf token` on the store of a service, as its operator would; returns the output."""

    def run() -> str:
        return subprocess.run(
            [sys.executable, "-m", "server.cli", "token", *arguments],
            env={
                **os.environ,
                "PYTHONPATH": str(Path(__file__).parents[2]),
                "MKF_DATABASE_URL": f"sqlite:///{service.folder / 'mkf.db'}",
            },
            stdout=subprocess.PIPE,
            text=True,
            timeout=100,
            check=True,
        ).stdout.strip()

    return await asyncio.to_thread(run)


def bearer(token: str) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"}


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(NOTICED_WITHIN):
        while not await condition():
            await asyncio.sleep(0.05)


async def test_the_command_line_makes_and_revokes_tokens_of_a_running_service(tmp_path: Path) -> None:
    async with running(tmp_path) as service:

        async def status(token: str | None = None) -> int:
            headers = {} if token is None else bearer(token)
            return (await service.api.get(EVENTS, headers=headers)).status_code

        assert await status() == 200, "open on loopback, as long as there is no token"
        first = await mkf(service, "create", "first", "--scope", "admin")
        await until(lambda: _is(status(), 401))
        assert await status(first) == 200
        second = await mkf(service, "create", "second", "--scope", "read", "--expires", "1h")
        assert await status(second) == 200, "at once"
        await mkf(service, "revoke", "2")
        await until(lambda: _is(status(second), 401))
        assert await status(first) == 200
        events = (await service.api.get(EVENTS, headers=bearer(first))).json()["items"]
        assert [(event["actor"], event["action"]) for event in events] == [
            ("cli", "revoke token"),
            ("cli", "create token"),
            ("cli", "create token"),
        ]
        assert await service.sigterm() == 0
    assert "first" in (await mkf(service, "list")).splitlines()[1]
    assert (await mkf(service, "list")).splitlines()[1].split()[-1] != "-", "its last use was written at the end"


async def _is(status: Awaitable[int], expected: int) -> bool:
    return await status == expected


async def test_no_token_and_no_hash_is_anywhere_but_in_the_answer_to_who_made_it(tmp_path: Path) -> None:
    file = tmp_path / "admin-token"
    file.write_text(ADMIN + "\n")
    wrong = "mkf_" + "w" * 43
    async with running(tmp_path / "service", MKF_ADMIN_TOKEN_FILE=str(file), MKF_LOG_FORMAT="json") as service:
        told: list[httpx.Response] = []

        async def call(method: str, path: str, token: str, **options: Any) -> httpx.Response:
            told.append(await service.api.request(method, path, headers=bearer(token), **options))
            return told[-1]

        made = await service.api.post("/api/v1/tokens", headers=bearer(ADMIN), json={"name": "a", "scope": "admin"})
        secret = made.json()["token"]
        paths = ["/api/v1/tokens", EVENTS, "/api/v1/mappings", "/metrics", "/openapi.json", f"/{secret}", "/readyz"]
        for token in (ADMIN, secret, wrong, wrong, hash_of(secret)):
            for path in paths:
                await call("GET", path, token)
            await call("POST", "/api/v1/tokens", token, json={"name": secret, "scope": "x"})
            await call("POST", "/api/v1/tokens", token, content=secret)
            await call("DELETE", f"/api/v1/tokens/{secret}", token)
        assert {response.status_code for response in told} >= {200, 401, 422, 429}
        rotated = ADMIN[::-1]
        file.write_text(rotated)

        async def taken_over() -> bool:
            return (await call("GET", EVENTS, rotated)).status_code == 200

        await until(taken_over)
        assert (await call("GET", EVENTS, ADMIN)).status_code in {401, 429}
        actors = {event["actor"] for event in (await call("GET", EVENTS, rotated)).json()["items"]}
        assert actors == {"admin (environment)"}
        assert await service.sigterm() == 0
    log = (tmp_path / "service" / "service.log").read_text()
    assert '"event": "authentication_failed"' in log
    assert '"path": "/api/v1/tokens/mkf_(removed)"' in log
    database = b"".join(path.read_bytes() for path in (tmp_path / "service").glob("mkf.db*"))
    for canary in (ADMIN, rotated, secret, wrong):
        assert canary.encode() not in database
        for text in (log, *(response.text + str(response.headers) for response in told)):
            assert canary not in text
            assert hash_of(canary) not in text
    assert hash_of(ADMIN).encode() not in database, "the environment's token is not stored, neither as a hash"


async def test_a_certificate_is_taken_over_while_it_serves(tmp_path: Path) -> None:
    cert, key = tmp_path / "tls.crt", tmp_path / "tls.key"

    def issue() -> httpx.AsyncClient:
        ca = trustme.CA()
        made = ca.issue_cert("127.0.0.1")
        cert.write_bytes(made.cert_chain_pems[0].bytes())
        key.write_bytes(made.private_key_pem.bytes())
        ca.cert_pem.write_to_path(tmp_path / "ca.pem")
        return httpx.AsyncClient(verify=ssl.create_default_context(cafile=str(tmp_path / "ca.pem")))

    async def reached(http: httpx.AsyncClient, service: Service) -> bool:
        try:
            return (await http.get(f"https://127.0.0.1:{service.port}/livez")).status_code == 200
        except httpx.TransportError:
            return False

    async with (
        issue() as before,
        running(tmp_path / "service", MKF_TLS_CERT=str(cert), MKF_TLS_KEY=str(key)) as service,
    ):
        await until(lambda: reached(before, service))
        async with issue() as after:
            await until(lambda: reached(after, service))
        assert await service.sigterm() == 0


@pytest.mark.parametrize("env", [{}, {"MKF_ADMIN_TOKEN": "x" * 31}])
async def test_it_does_not_start_where_nobody_or_everybody_could_use_it(tmp_path: Path, env: dict[str, str]) -> None:
    service = Service(
        tmp_path,
        mqtt_broker=MqttBroker("127.0.0.1", free_port()),
        kafka_broker=KafkaCluster(f"127.0.0.1:{free_port()}"),
        env={"MKF_HOST": "0.0.0.0", **env},
    )
    async with service:
        async with asyncio.timeout(START_TIMEOUT):
            while service.running:
                await asyncio.sleep(0.05)
        assert service.exit_code == 2
    assert "MKF_ADMIN_TOKEN" in (tmp_path / "service.log").read_text()
