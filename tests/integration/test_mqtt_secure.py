"""MQTT over TLS and WebSocket on a real Mosquitto, for both protocol versions: what goes wrong, and how it mends."""

from __future__ import annotations

import asyncio
import functools
import inspect
from typing import TYPE_CHECKING, Any

import pytest
import uvloop

from server.mqtt.port import ConnectionEndedError
from tests.brokers.secure import KINDS, Authority, PemFiles, SecureMosquitto
from tests.devices import publish
from tests.integration.test_mqtt_5 import Collector, Version, ended, numbered, request, subscriptions

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator
    from pathlib import Path

    from server.mqtt.port import Ended

TLS_KINDS = ["tls", "mtls", "wss"]


LOOPS = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


def on_each_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run a test on the loop of the service, and on Python's own, whose TLS is another."""

    @pytest.mark.parametrize("loop", LOOPS)
    @functools.wraps(test)
    def run(loop: str, **fixtures: Any) -> None:
        with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
            runner.run(test(**fixtures))

    signature = inspect.signature(test)
    own = inspect.Parameter("loop", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    run.__signature__ = signature.replace(parameters=[own, *signature.parameters.values()])  # type: ignore[attr-defined]
    return run


@pytest.fixture(params=["5", "3.1.1"])
def version(request: pytest.FixtureRequest) -> Version:
    return Version(request.param)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("pki"))


@pytest.fixture(scope="module")
def client(authority: Authority) -> PemFiles:
    return authority.issue("client", "forwarder")


@pytest.fixture(scope="module")
def broker(authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecureMosquitto]:
    """A broker for every test that does not break it."""
    server = authority.issue("server", "localhost", "127.0.0.1")
    folder = tmp_path_factory.mktemp("secure")
    with SecureMosquitto(folder, authority=authority, server=server, persistence=False) as running:
        yield running


@on_each_loop
@pytest.mark.parametrize("kind", KINDS)
async def test_messages_come_in_order_and_acknowledgements_arrive(
    version: Version, broker: SecureMosquitto, client: PemFiles, kind: str, unique: str
) -> None:
    to = request(broker, unique, **broker.mqtt(kind, client if kind == "mtls" else None))
    async with version.connected(to, Collector(acknowledge=1_500)) as (connection, collector):
        await connection.subscribe(subscriptions(f"{unique}/#"))
        await publish(broker.host, broker.port, numbered(f"{unique}/a", range(2_000)))
        await collector.wait(2_000)
        await connection.leave()
    assert collector.payloads == [b"%d" % n for n in range(2_000)]
    assert len(collector.reads) < 1_000, "messages of a read come together"
    async with version.connected(to, Collector(acknowledge=500)) as (connection, collector):
        await collector.wait(500)
        await connection.leave()
    assert collector.payloads == [b"%d" % n for n in range(1_500, 2_000)]
