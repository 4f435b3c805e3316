"""The service killed, ended, paused and changed in the middle of traffic; and two processes on one store."""

from __future__ import annotations

import asyncio
import functools
import time
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import psutil
import pytest

from tests.forwarding import Stage, check_books, edit, pause, quiet, resume

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.checking import History
    from tests.forwarding import Traffic
    from tests.service import Service

# What a process holds at most without having acknowledged it: its buffer, what one read from the socket brings, and a
# read's acknowledgements that are written at the end of the loop's turn.
# The broker is no bound: Mosquitto 2.0.11 exceeds every limit of its own while acknowledgements come in bulk.
PADDING = 200
BUFFER = 1024 * 1024
WINDOW = BUFFER // (PADDING + 400) + 2 * 256 * 1024 // PADDING
PUBACK_BYTES = 4
RATE = 7_000
TIMES = 10
MESSAGES = 100_000

alone = pytest.mark.alone  # 100,000 messages, as fast as the machine takes them


@alone
async def test_kill_9_five_times_loses_nothing_and_repeats_only_what_was_in_flight(stage: Stage) -> None:
    topic = await stage.kafka_topic(partitions=4)
    traffic = stage.traffic(topics=100, padding=PADDING)
    kills: list[tuple[float, int]] = []
    async with stage.running(stage.mapping(topic, buffer_bytes=BUFFER)) as service:
        async with _flowing(stage, traffic, topic):
            for _ in range(5):
                await _delivering(service, 5_000)
                unread = await _frozen(service, stage.mosquitto.port)
                service.kill9()
                kills.append((time.time() * 1000, unread + WINDOW))
                service.start()
        history = await stage.outcome(service, topic, traffic.published)
    # A kill that comes before the replay of an earlier one is over puts the rest of it off, so they count together.
    allowed = 0
    for (_, in_flight), until in zip(kills, [at for at, _ in kills[1:]] + [float("inf")], strict=True):
        allowed += in_flight
        assert sum(1 for record in history.repeats if record.timestamp < until) <= allowed
    assert history.problems(repeats_allowed=allowed) == []
    assert all(record.timestamp >= kills[0][0] for record in history.repeats)


async def _frozen(service: Service, broker_port: int) -> int:
    """Freeze the process, and count its PUBACKs that the broker has not read: the kill's TCP reset will lose them.

    Not while the broker is so far behind that the process itself has to hold some back, where nobody can count them.
    """
    async with asyncio.timeout(60):
        while True:
            service.pause()
            unsent, unread = _on_the_wire(service.pid, broker_port)
            if not unsent:
                return unread // PUBACK_BYTES
            service.resume()
            await asyncio.sleep(0.02)


def _on_the_wire(pid: int, broker_port: int) -> tuple[int, int]:
    """Bytes this process has not got rid of, and bytes the broker has and has not read."""
    own = {c.laddr.port for c in psutil.Process(pid).net_connections("tcp4") if c.raddr and c.raddr.port == broker_port}
    unsent = unread = 0
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        _, local, remote, _, queues, *_ = line.split()
        ports = int(local.rpartition(":")[2], 16), int(remote.rpartition(":")[2], 16)
        to_send, to_read = (int(size, 16) for size in queues.split(":"))
        if ports[0] in own and ports[1] == broker_port:
            unsent += to_send
        elif ports[1] in own and ports[0] == broker_port:
            unread += to_read
    return unsent, unread


async def _delivering(service: Service, messages: int) -> dict[str, Any]:
    """Wait until this process has delivered so many, so that it is in the middle of its work."""

    def busy(status: dict[str, Any]) -> bool:
        check_books(status)
        return bool(status["counters"]["delivered"] >= messages)

    return await service.wait_status("m", busy, f"{messages} messages delivered")


@asynccontextmanager
async def _flowing(stage: Stage, traffic: Traffic, topic: str) -> AsyncIterator[None]:
    """Publish as fast as a quiet machine likes, or as what is tried lets through."""
    async with traffic.flowing(RATE, at_least=MESSAGES, arrived=functools.partial(stage.arrived, topic)):
        yield


async def _behind(stage: Stage, traffic: Traffic, topic: str, most: int) -> None:
    """Wait until fewer than so many are on the way: what restarts hold up would add up on a busy machine."""
    async with asyncio.timeout(60):
        while len(traffic.published) - await stage.arrived(topic) >= most:
            await asyncio.sleep(0.1)


async def _verdict(stage: Stage, service: Service, topic: str, published: list[tuple[str, bytes]]) -> History:
    history = await stage.outcome(service, topic, published)
    assert (await service.status("m"))["counters"]["sessions_lost"] == 0
    return history


@alone
async def test_pause_and_resume_in_the_middle_of_traffic_repeat_nothing(stage: Stage) -> None:
    topic = await stage.kafka_topic(partitions=4)
    traffic = stage.traffic()
    async with stage.running(stage.mapping(topic)) as service:
        async with _flowing(stage, traffic, topic):
            for _ in range(TIMES):
                before = (await service.status("m"))["counters"]["delivered"]
                await _delivering(service, before + 200)
                await pause(service)
                held = await stage.kafka.end_offsets(topic)
                status = await service.status("m")
                check_books(status)
                assert not status["mqtt"]["connected"]
                await traffic.more(3_000)  # so that the next pause comes while the broker sends as fast as it can
                assert await stage.kafka.end_offsets(topic) == held, "it wrote while it was paused"
                await resume(service)
                await _behind(stage, traffic, topic, 10_000)
        history = await _verdict(stage, service, topic, traffic.published)
    assert history.problems() == []


@alone
async def test_an_edit_of_the_filters_in_the_middle_of_traffic_repeats_nothing(stage: Stage) -> None:
    topic = await stage.kafka_topic(partitions=4)
    traffic = stage.traffic()
    main, other = f"{stage.unique}/#", f"other-{stage.unique}/#"
    async with stage.running(stage.mapping(topic)) as service:
        async with _flowing(stage, traffic, topic):
            for n in range(TIMES):
                filters = [main, other] if n % 2 == 0 else [main]
                status = await edit(service, {"mqtt": {"topic": filters}})
                check_books(status)
                assert set(status["mqtt"]["granted_qos"]) == set(filters)
                await _delivering(service, status["counters"]["delivered"] + 200)
                await _behind(stage, traffic, topic, RATE)
        history = await _verdict(stage, service, topic, traffic.published)
        # The other filter is gone at the broker too.
        await stage.publish([(f"other-{stage.unique}/a", b"unwanted"), (f"{stage.unique}/last", b"last")])
        traffic.published.append((f"{stage.unique}/last", b"last"))
        assert (await stage.outcome(service, topic, traffic.published)).problems() == []
    assert history.problems() == []


@alone
async def test_sigterm_and_start_in_the_middle_of_traffic_repeat_nothing(stage: Stage) -> None:
    topic = await stage.kafka_topic(partitions=4)
    traffic = stage.traffic()
    exits = []
    async with stage.running(stage.mapping(topic)) as service:
        async with _flowing(stage, traffic, topic):
            for _ in range(TIMES):
                await _delivering(service, 200)
                exits.append(await service.sigterm())
                service.start()
        history = await _verdict(stage, service, topic, traffic.published)
    assert exits == [0] * TIMES
    assert history.problems() == []


@pytest.mark.parametrize("protocol", ["5"])
@pytest.mark.parametrize("killed", [False, True], ids=["ended", "killed"])
async def test_a_second_process_on_the_same_store_waits_and_takes_over(stage: Stage, killed: bool) -> None:
    topic = await stage.kafka_topic()
    traffic = stage.traffic(topics=10)
    mapping = stage.mapping(topic)
    async with stage.running(mapping) as first:
        store = {"MKF_DATABASE_URL": f"sqlite:///{first.folder / 'mkf.db'}"}
        async with stage.service(mapping, name="second", env=store) as second:
            reasons = await _unready(second)
            assert "the store is in use by another process" in reasons
            assert str(first.pid) in reasons
            await traffic.burst(1_000)
            assert (await stage.outcome(first, topic, traffic.published)).problems() == []
            assert (await first.status("m"))["counters"]["reconnects"] == 0, "the second took the session"
            await _unready(second)
            if killed:
                first.kill9()
            else:
                assert await first.sigterm() == 0
            await second.wait_ready()
            await second.wait_state("m")
            await traffic.burst(1_000)
            assert (await stage.outcome(second, topic, traffic.published)).problems() == []
            await quiet(second)


async def _unready(service: Service) -> str:
    """Wait until it answers, which must be that it is not ready; returns the reasons."""
    async with asyncio.timeout(30):
        while True:
            try:
                response = await service.api.get("/readyz")
            except httpx.TransportError:
                await asyncio.sleep(0.05)
            else:
                break
    assert response.status_code == 503
    return " ".join(response.json()["reasons"])
