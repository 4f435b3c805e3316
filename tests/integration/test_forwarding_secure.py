"""The main job through TLS and WebSocket, and a mapping's state while what secures the connection is wrong."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from tests.brokers.secure import KINDS, WITH_CERTIFICATE, Authority, PemFiles, SecureMosquitto
from tests.forwarding import Stage, pause, resume, retrying

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


MESSAGES = 3_000


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "pki")


@pytest.fixture
def client(authority: Authority) -> PemFiles:
    return authority.issue("client", "forwarder")


@pytest.fixture
def broker(authority: Authority, tmp_path: Path) -> Iterator[SecureMosquitto]:
    server = authority.issue("server", "127.0.0.1")
    with SecureMosquitto(tmp_path / "secure", authority=authority, server=server) as running:
        yield running


@pytest.fixture
def secured(stage: Stage, broker: SecureMosquitto) -> Stage:
    """Return a stage whose devices publish to the broker's plain port."""
    return replace(stage, mosquitto=broker)


@pytest.mark.parametrize("kind", KINDS)
async def test_every_message_arrives_exactly_once_and_in_order_over_a_restart(
    secured: Stage, broker: SecureMosquitto, client: PemFiles, kind: str
) -> None:
    topic = await secured.kafka_topic(partitions=2)
    traffic = secured.traffic(topics=20)
    settings = broker.mqtt(kind, client if kind in WITH_CERTIFICATE else None)
    service = secured.service(secured.mapping(topic), mqtt=settings)
    async with service:
        await service.wait_ready()
        await service.wait_state("m")
        await traffic.burst(MESSAGES)
        async with traffic.flowing(2_000, at_least=500):
            assert await service.sigterm() == 0
        service.start()
        await service.wait_ready()
        await service.wait_state("m")
        history = await secured.outcome(service, topic, traffic.published)
        status = await service.status("m")
    assert history.problems() == []
    assert sum((await secured.kafka.end_offsets(topic)).values()) == len(traffic.published)
    assert status["mqtt"]["protocol"] == secured.protocol
    assert status["mqtt"]["session_present"]
    assert status["counters"]["deduplicated"] == 0
    assert "Traceback" not in service.log_path.read_text()


@pytest.mark.parametrize("kind", ["tls", "wss"])
async def test_a_certificate_that_expires_at_a_running_broker_is_named_until_it_is_renewed(
    secured: Stage, broker: SecureMosquitto, authority: Authority, kind: str
) -> None:
    topic = await secured.kafka_topic()
    traffic = secured.traffic()
    async with secured.running(secured.mapping(topic), mqtt=broker.mqtt(kind)) as service:
        await traffic.burst(500)
        await service.wait_status("m", lambda status: status["counters"]["delivered"] == 500, "m has delivered all")
        await pause(service)  # the broker has read every acknowledgement now, and has nothing to send again
        await resume(service)
        broker.server = authority.issue("expired", "127.0.0.1", expired=True)
        await asyncio.to_thread(broker.restart)
        assert "has expired" in (await retrying(service, "mqtt_certificate_expired"))["reason"]
        await traffic.burst(500)  # the session is there, so the broker queues
        broker.server = authority.issue("renewed", "127.0.0.1")
        await asyncio.to_thread(broker.restart)
        history = await secured.outcome(service, topic, traffic.published)
    assert history.problems() == []


async def test_certificates_that_are_mounted_late_and_change_need_no_restart(
    secured: Stage, broker: SecureMosquitto, authority: Authority, tmp_path: Path
) -> None:
    topic = await secured.kafka_topic()
    traffic = secured.traffic()
    mounted = tmp_path / "mounted"
    mine = PemFiles(mounted / "tls.crt", mounted / "tls.key")
    service = secured.service(secured.mapping(topic), mqtt=broker.mqtt("mtls", mine))
    async with service:
        await service.wait_ready()
        said = (await retrying(service, "mqtt_tls_files"))["reason"]
        assert f"mqtt.tls.client_cert ({mine.cert}) can't be used: No such file or directory" in said
        issued = authority.issue("first", "forwarder", expired=True)
        mounted.mkdir()
        mine.key.symlink_to(issued.key)
        mine.cert.symlink_to(issued.cert)
        assert "has expired" in (await retrying(service, "mqtt_client_certificate"))["reason"]
        authority.issue("first", "forwarder")  # in the place of those that have expired
        await service.wait_state("m")
        await traffic.burst(500)
        assert (await secured.outcome(service, topic, traffic.published)).problems() == []


@pytest.mark.parametrize("kind", ["tls", "ws"])
async def test_credentials_that_are_revoked_stop_a_mapping_until_they_are_granted_again(
    stage: Stage, authority: Authority, tmp_path: Path, kind: str
) -> None:
    server = authority.issue("server", "127.0.0.1")
    known = {"forwarder": "secret-of-the-forwarder"}
    topic = await stage.kafka_topic()
    with SecureMosquitto(tmp_path / "secure", authority=authority, server=server, passwords=known) as broker:
        settings = broker.mqtt(kind) | {"credentials": {"username": "forwarder", "password": known["forwarder"]}}
        async with replace(stage, mosquitto=broker).running(stage.mapping(topic), mqtt=settings) as service:
            broker.set_passwords({"other": "password"})
            await asyncio.to_thread(broker.reload)
            said = (await retrying(service, "mqtt_not_authorized"))["reason"]
            assert "mqtt.credentials" in said
            broker.set_passwords(known)
            await asyncio.to_thread(broker.reload)
            await service.wait_state("m")
    assert known["forwarder"] not in service.log_path.read_text()
