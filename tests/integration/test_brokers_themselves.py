"""The test environment tested: when these fail, failures elsewhere say nothing about the service."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from aiokafka import AIOKafkaProducer

from tests.brokers import free_port
from tests.devices import Device, connected, publish, session_exists, subscriber
from tests.service import Service

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from tests.brokers import Kafka, KafkaCluster, Mosquitto, MqttBroker


def test_no_two_processes_of_the_tests_get_the_same_port() -> None:
    """Though nobody listens on it yet."""
    port = free_port()
    program = f"from tests.brokers.process import _CLAIMS; print(_CLAIMS.claim({port}))"
    assert subprocess.check_output([sys.executable, "-c", program], text=True) == "False\n"
    assert len({port, *(free_port() for _ in range(100))}) == 101


async def test_a_subscriber_gets_every_message_in_order(mosquitto: MqttBroker, unique: str) -> None:
    sent = [(f"{unique}/a", b"%d" % n) for n in range(1_000)]
    async with subscriber(mosquitto.host, mosquitto.port, f"{unique}/#") as sub:
        assert await publish(mosquitto.host, mosquitto.port, sent) == 1_000
        received = await sub.wait(1_000)
    assert [(m.topic, m.payload) for m in received] == sent


@pytest.mark.parametrize("qos", [0, 1, 2])
async def test_every_qos_is_published(mosquitto: MqttBroker, unique: str, qos: int) -> None:
    async with subscriber(mosquitto.host, mosquitto.port, f"{unique}/#", qos=qos) as sub:
        await publish(mosquitto.host, mosquitto.port, [(f"{unique}/a", b"x")] * 200, qos=qos)
        received = await sub.wait(200)
    assert {int(m.qos) for m in received} == {qos}


async def test_a_session_can_be_looked_at_without_changing_it(mosquitto: MqttBroker, unique: str) -> None:
    host, port = mosquitto.host, mosquitto.port
    for protocol in ("5", "3.1.1"):
        assert not await session_exists(host, port, unique, protocol)
        assert not await session_exists(host, port, unique, protocol)
    async with subscriber(host, port, f"{unique}/#", client_id=unique, session_expiry_interval=600):
        pass
    await publish(host, port, [(f"{unique}/a", b"kept")])
    for protocol in ("5", "3.1.1", "5"):
        assert await session_exists(host, port, unique, protocol)
    async with subscriber(host, port, f"{unique}/#", client_id=unique, clean_start=False) as sub:
        assert [m.payload for m in await sub.wait(1)] == [b"kept"]


async def test_records_written_to_kafka_are_read_back(
    kafka: KafkaCluster, kafka_topic: Callable[..., Awaitable[str]]
) -> None:
    topic = await kafka_topic("orders", partitions=2)
    assert await kafka.read_all(topic) == []
    producer = AIOKafkaProducer(bootstrap_servers=kafka.bootstrap)
    await producer.start()
    try:
        for n in range(100):
            await producer.send(topic, b"%d" % n, key=b"k", partition=n % 2, headers=[("h", b"v")])
        await producer.flush()
    finally:
        await producer.stop()
    records = await kafka.wait_for_records(topic, 100)
    assert [int(r.value or b"") for r in records] == [*range(0, 100, 2), *range(1, 100, 2)]
    assert {(r.key, r.headers) for r in records} == {(b"k", (("h", b"v"),))}
    assert [r.offset for r in records] == [*range(50), *range(50)]
    await kafka.add_partitions(topic, 3)
    assert await kafka.end_offsets(topic) == {0: 50, 1: 50, 2: 0}


async def test_mosquitto_keeps_sessions_over_a_restart_and_loses_them_when_wiped(
    own_mosquitto: Callable[..., Mosquitto], unique: str
) -> None:
    broker = own_mosquitto()
    # 2.0.11 doesn't write sessions to disk that began with Clean Start 1.
    async with connected(broker.host, broker.port, unique, clean_start=False, session_expiry_interval=600):
        pass
    broker.restart()
    assert await session_exists(broker.host, broker.port, unique)
    broker.restart(wipe=True)
    assert not await session_exists(broker.host, broker.port, unique)


async def test_a_device_outlives_a_killed_broker(own_mosquitto: Callable[..., Mosquitto], unique: str) -> None:
    broker = own_mosquitto(persistence=False)
    device = Device(broker.host, broker.port)
    sending = asyncio.create_task(device.send([(unique, b"%d" % n) for n in range(300)], per_second=200))
    await asyncio.to_thread(broker.restart, kill=True)
    await sending
    assert device.accepted == 300


async def test_kafka_keeps_its_records_when_it_is_killed_and_answers_after_a_freeze(
    own_kafka: Callable[..., Kafka],
) -> None:
    broker = own_kafka()
    topic = await broker.create_topic("kept")
    producer = AIOKafkaProducer(bootstrap_servers=broker.bootstrap, acks="all")
    await producer.start()
    try:
        await producer.send_and_wait(topic, b"1")
        broker.pause()
        sending = asyncio.create_task(producer.send_and_wait(topic, b"2"))
        assert not (await asyncio.wait([sending], timeout=0.5))[0]
        broker.resume()
        await asyncio.wait_for(sending, 10)
    finally:
        await producer.stop()
    await asyncio.to_thread(broker.restart, kill=True)
    assert [r.value for r in await broker.wait_for_records(topic, 2)] == [b"1", b"2"]
    await asyncio.to_thread(broker.stop)
    assert not broker.running


async def test_the_service_forwards_ends_on_sigterm_and_goes_on_after_kill9(
    mosquitto: MqttBroker,
    kafka: KafkaCluster,
    kafka_topic: Callable[..., Awaitable[str]],
    unique: str,
    tmp_path: Path,
) -> None:
    topic = await kafka_topic()
    mapping = {"name": "a b", "mqtt": {"topic": f"{unique}/#"}, "kafka": {"topic": topic}}
    sent = [(f"{unique}/a", b"%d" % n) for n in range(300)]
    async with Service(
        tmp_path / "service", mqtt_broker=mosquitto, kafka_broker=kafka, forwarding=[mapping], client_id=unique
    ) as service:
        await service.wait_ready()
        assert (await service.wait_state("a b"))["desired"] == "running"
        await publish(mosquitto.host, mosquitto.port, sent[:100])
        await kafka.wait_for_records(topic, 100)
        assert await service.sigterm() == 0
        await publish(mosquitto.host, mosquitto.port, sent[100:200])
        service.start()
        await kafka.wait_for_records(topic, 200)
        service.kill9()
        await publish(mosquitto.host, mosquitto.port, sent[200:])
        service.start()
        await kafka.wait_for_records(topic, 300)
    seen = dict.fromkeys(record.value for record in await kafka.read_all(topic))  # kill9 may cause repeats
    assert list(seen) == [payload for _, payload in sent]
