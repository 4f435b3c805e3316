"""Either broker away: at the start, under load, for a while, with or without its memory. The service mends itself."""

from __future__ import annotations

import asyncio
import signal
import time
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from tests.devices import Device
from tests.forwarding import Stage, check_books, quiet

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from tests.brokers import Kafka, Mosquitto
    from tests.forwarding import Traffic
    from tests.service import Service

RECOVERY = 30.0
MEGABYTE = 1024 * 1024
HEAP = "512m"


async def test_a_lost_session_is_counted_and_forwarding_goes_on(
    stage: Stage, own_mosquitto: Callable[..., Mosquitto]
) -> None:
    stage.mosquitto = broker = own_mosquitto()
    topic = await stage.kafka_topic(partitions=2)
    traffic = stage.traffic(topics=10)
    async with stage.running(stage.mapping(topic)) as service:
        await traffic.burst(2_000)
        assert (await stage.outcome(service, topic, traffic.published)).problems() == []
        await asyncio.to_thread(broker.restart, wipe=True)
        status = await service.wait_status("m", _sessions_lost(1), "a lost session counted", RECOVERY)
        assert status["mqtt"]["session_present"] is False
        assert status["last_error"]["reason"].startswith("mqtt_")
        await service.wait_state("m", timeout=RECOVERY)
        await traffic.burst(2_000)
        assert (await stage.outcome(service, topic, traffic.published)).problems() == []
        assert (await service.status("m"))["counters"]["reconnects"] == 1


def _sessions_lost(count: int) -> Callable[[dict[str, Any]], bool]:
    return lambda status: bool(status["counters"]["sessions_lost"] == count)


async def test_a_broker_restarted_under_load_with_its_sessions_loses_nothing(
    stage: Stage, own_mosquitto: Callable[..., Mosquitto]
) -> None:
    stage.mosquitto = broker = own_mosquitto()
    topic = await stage.kafka_topic(partitions=2)
    device = Device(broker.host, broker.port)
    messages = stage.traffic(topics=20).next(12_000)
    async with stage.running(stage.mapping(topic)) as service:
        sending = asyncio.create_task(device.send(messages, per_second=2_000, timeout=90))
        await stage.kafka.wait_for_records(topic, 2_000)
        await asyncio.to_thread(broker.restart)
        await service.wait_status("m", lambda s: s["counters"]["reconnects"] == 1, "reconnected", RECOVERY)
        await sending
        history = await stage.outcome(service, topic, messages)
        status = await service.status("m")
    # The device sends again what it had no answer for, so the broker itself has up to a window twice.
    assert history.problems(repeats_allowed=2_000) == []
    assert status["counters"]["sessions_lost"] == 0
    assert status["mqtt"]["session_present"] is True


async def test_what_the_broker_kept_over_its_own_restart_arrives(
    stage: Stage, own_mosquitto: Callable[..., Mosquitto]
) -> None:
    stage.mosquitto = broker = own_mosquitto()
    topic = await stage.kafka_topic(partitions=2)
    traffic = stage.traffic(topics=10)
    async with stage.running(stage.mapping(topic)) as service:
        assert await service.sigterm() == 0
        await traffic.burst(3_000)
        await asyncio.to_thread(broker.restart)
        service.start()
        history = await stage.outcome(service, topic, traffic.published)
        assert (await service.status("m"))["counters"]["sessions_lost"] == 0
    assert history.problems() == []


async def test_a_service_started_without_mqtt_says_so_and_recovers(
    stage: Stage, own_mosquitto: Callable[..., Mosquitto]
) -> None:
    stage.mosquitto = broker = own_mosquitto()
    topic = await stage.kafka_topic()
    traffic = stage.traffic(topics=5)
    await asyncio.to_thread(broker.stop)
    async with stage.service(stage.mapping(topic)) as service:
        await service.wait_ready()
        status = await service.wait_state("m", "retrying")
        assert status["reason"].startswith("mqtt_unreachable: ")
        assert str(broker.port) in status["reason"]
        await asyncio.to_thread(broker.start)
        await service.wait_state("m", timeout=RECOVERY)
        await traffic.burst(500)
        assert (await stage.outcome(service, topic, traffic.published)).problems() == []
        assert await service.sigterm() == 0


# --- Kafka away -------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def _both(
    stage: Stage, kafka: Kafka, start: bool = True, **mapping: Any
) -> AsyncIterator[list[tuple[Stage, str, Service]]]:
    """Run two services at once, one over each protocol: an outage that takes its time need not be had twice."""
    async with AsyncExitStack() as stack:
        running = []
        for protocol in ("5", "3.1.1"):
            unique = f"{stage.unique}-{protocol.replace('.', '')}"
            own = replace(stage, folder=stage.folder / protocol, kafka=kafka, unique=unique, protocol=protocol)
            topic = f"outage-{unique}"
            if start:
                await kafka.create_topic(topic, partitions=4)
                service = await stack.enter_async_context(own.running(own.mapping(topic, **mapping)))
            else:
                service = await stack.enter_async_context(own.service(own.mapping(topic, **mapping)))
            running.append((own, topic, service))
        yield running


async def _forwarding_is_well(service: Service) -> None:
    """Wait for the probe: the oldest message may have been old when Kafka came back, and is confirmed soon."""
    async with asyncio.timeout(RECOVERY):
        while (await service.api.get("/healthz/forwarding")).status_code != 200:
            await asyncio.sleep(0.1)


async def _retrying_because_of_kafka(service: Service) -> None:
    status = await service.wait_state("m", "retrying", timeout=15)
    assert status["reason"].startswith("kafka_"), status["reason"]
    check_books(status)


@pytest.mark.timeout(240)
@pytest.mark.parametrize("protocol", ["5"])
async def test_kafka_killed_under_load_loses_nothing_and_bounds_memory(
    stage: Stage, own_kafka: Callable[..., Kafka]
) -> None:
    kafka = own_kafka(heap=HEAP)
    budget = 8 * MEGABYTE
    async with _both(stage, kafka, buffer_bytes=budget) as running, AsyncExitStack() as flows:
        traffics: list[Traffic] = []
        for own, topic, _ in running:
            # 2 MB/s each: several times the budget while Kafka is away.
            traffic = own.traffic(topics=50, padding=1_000)
            traffics.append(traffic)
            await flows.enter_async_context(traffic.flowing(2_000))
            await kafka.wait_for_records(topic, 2_000)
        idle = {service: service.private_memory() for *_, service in running}
        kafka.kill()
        killed, unwell = time.monotonic(), 0
        most = dict(idle)
        for *_, service in running:
            await _retrying_because_of_kafka(service)
        while time.monotonic() - killed < 20 or (unwell < len(running) and time.monotonic() - killed < 40):
            unwell = 0
            for *_, service in running:
                most[service] = max(most[service], service.private_memory())
                assert (await service.api.get("/livez")).status_code == 200
                assert (await service.api.get("/readyz")).status_code == 200
                status = await service.status("m")
                check_books(status)
                assert status["in_flight"]["bytes"] <= budget + MEGABYTE
                response = await service.api.get("/healthz/forwarding")
                if response.status_code == 503:
                    unwell += 1
                    assert "'m'" in response.json()["reasons"][0]
                    assert time.monotonic() - killed > 20
            await asyncio.sleep(0.2)
        assert unwell == len(running), "forwarding stood still for more than 25 s, and no probe said so"
        in_flight = [(await service.status("m"))["in_flight"]["messages"] for *_, service in running]
        await asyncio.to_thread(kafka.start)
        for *_, service in running:
            await service.wait_state("m", timeout=RECOVERY)
            await _forwarding_is_well(service)
        await flows.aclose()  # the devices end here
        for (own, topic, service), traffic, repeatable in zip(running, traffics, in_flight, strict=True):
            history = await own.outcome(service, topic, traffic.published)
            assert history.problems(repeats_allowed=repeatable) == []
            most[service] = max(most[service], service.private_memory())
    for service, before in idle.items():
        grown = most[service] - before
        assert grown < budget + 20 * MEGABYTE, f"from {before / MEGABYTE:.0f} MB by {grown / MEGABYTE:.0f} MB"


@pytest.mark.parametrize("protocol", ["5"])
async def test_the_process_takes_less_than_100_mb_beside_its_budgets(stage: Stage) -> None:
    topic = await stage.kafka_topic()
    traffic = stage.traffic()
    async with stage.running(stage.mapping(topic, buffer_bytes=1024)) as service:
        await traffic.burst(1_000)
        assert (await stage.outcome(service, topic, traffic.published)).problems() == []
        assert service.private_memory() < 100 * MEGABYTE


@pytest.mark.timeout(240)
@pytest.mark.parametrize("protocol", ["5"])
async def test_sigterm_while_kafka_is_away_ends_in_time_and_loses_nothing(
    stage: Stage, own_kafka: Callable[..., Kafka]
) -> None:
    kafka = own_kafka(heap=HEAP)
    async with _both(stage, kafka) as running:
        traffics = []
        for own, topic, service in running:
            traffic = own.traffic(topics=20)
            traffics.append(traffic)
            await traffic.burst(1_000)
            assert (await own.outcome(service, topic, traffic.published)).problems() == []
        kafka.kill()
        for (*_, service), traffic in zip(running, traffics, strict=True):
            await traffic.burst(1_000)
            await service.wait_status("m", lambda s: s["in_flight"]["messages"] == 1_000, "1,000 in flight")
        started = time.monotonic()
        codes = await asyncio.gather(*(service.sigterm(timeout=25) for *_, service in running))
        took = time.monotonic() - started
        assert codes == [0, 0]
        assert took <= 25
        # Started again without Kafka: it waits, and a second SIGTERM does not.
        for *_, service in running:
            service.start()
            await service.wait_ready()
            await service.wait_status("m", lambda s: s["in_flight"]["messages"] == 1_000, "redelivered")
            service.signal(signal.SIGTERM)
            await _says(service, "shutting_down")
            service.signal(signal.SIGTERM)
            assert await asyncio.to_thread(service.wait, 5) == 128 + signal.SIGTERM, "a drain would take 15 s"
        # And once more, until Kafka is back.
        for *_, service in running:
            service.start()
            await service.wait_ready()
            status = await service.wait_state("m", "retrying")
            assert status["reason"].startswith("kafka_")
        await asyncio.to_thread(kafka.start)
        for (own, topic, service), traffic in zip(running, traffics, strict=True):
            await service.wait_state("m", timeout=RECOVERY)
            history = await own.outcome(service, topic, traffic.published)
            # What was on its way when Kafka was killed may have been written although nobody heard of it.
            assert history.problems() == []
            await quiet(service)


async def _says(service: Service, what: str) -> None:
    async with asyncio.timeout(10):
        while what not in service.log():
            await asyncio.sleep(0.02)
