"""What becomes of the session at the broker: deleted, moved to another client id, reset, its filters changed."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from tests.devices import session_exists
from tests.forwarding import Stage, act, edit, patched, pause, quiet, resume

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.brokers import Mosquitto
    from tests.service import Service

DEADLINE = 30.0


async def _delete(service: Service) -> None:
    assert (await service.api.delete("/api/v1/mappings/m")).status_code == 204


async def _session_gone(stage: Stage, client_id: str) -> None:
    """Wait until the broker has no session for this client id; looking is a takeover, so not too often."""
    async with asyncio.timeout(DEADLINE):
        while await session_exists(stage.mosquitto.host, stage.mosquitto.port, client_id, stage.protocol):
            await asyncio.sleep(0.5)


async def _logged(service: Service, what: str) -> None:
    async with asyncio.timeout(DEADLINE):
        while what not in service.log():
            await asyncio.sleep(0.05)


async def test_delete_ends_the_session_at_the_broker(stage: Stage) -> None:
    topic = await stage.kafka_topic()
    traffic = stage.traffic(topics=10)
    async with stage.running(stage.mapping(topic)) as service:
        await traffic.burst(500)
        assert (await stage.outcome(service, topic, traffic.published)).problems() == []
        await _delete(service)
        await _logged(service, "session_ended")
        assert not await session_exists(stage.mosquitto.host, stage.mosquitto.port, stage.client_id, stage.protocol)
        assert (await service.api.get("/api/v1/mappings/m")).status_code == 404


async def test_a_delete_while_the_broker_is_away_is_done_when_it_is_back(
    stage: Stage, own_mosquitto: Callable[..., Mosquitto]
) -> None:
    stage.mosquitto = broker = own_mosquitto()
    topic = await stage.kafka_topic()
    async with stage.running(stage.mapping(topic)) as service:
        await asyncio.to_thread(broker.stop)
        await service.wait_state("m", "retrying")
        await _delete(service)
        await _logged(service, "session_not_ended_yet")
        # It outlives the process too.
        service.config["forwarding"] = []
        assert await service.sigterm() == 0
        await asyncio.to_thread(broker.start)
        assert await session_exists(broker.host, broker.port, stage.client_id, stage.protocol)
        service.start()
        await service.wait_ready()
        await _session_gone(stage, stage.client_id)


async def test_a_mapping_recreated_before_its_session_is_ended_begins_afresh(
    stage: Stage, own_mosquitto: Callable[..., Mosquitto]
) -> None:
    stage.mosquitto = broker = own_mosquitto()
    topic = await stage.kafka_topic()
    mapping = stage.mapping(topic)
    async with stage.running(mapping) as service:
        await pause(service)
        await stage.publish([(f"{stage.unique}/old", b"%d" % n) for n in range(100)])
        await asyncio.to_thread(broker.stop)
        await _delete(service)
        await _logged(service, "session_not_ended_yet")
        assert (await service.api.post("/api/v1/mappings", json=mapping)).status_code == 201
        await service.wait_state("m", "retrying")
        await asyncio.to_thread(broker.start)
        await service.wait_state("m")
        fresh = [(f"{stage.unique}/new", b"%d" % n) for n in range(100)]
        await stage.publish(fresh)
        # Nothing of what the deleted mapping's session held, and the new session stays.
        assert (await stage.outcome(service, topic, fresh)).problems() == []
        await pause(service)
        assert await session_exists(broker.host, broker.port, stage.client_id, stage.protocol)
        await stage.publish([(f"{stage.unique}/new", b"kept")])
        await resume(service)
        history = await stage.outcome(service, topic, [*fresh, (f"{stage.unique}/new", b"kept")])
        assert history.problems() == []
        assert (await service.status("m"))["counters"]["sessions_lost"] == 0


async def test_a_changed_client_id_moves_what_was_queued(stage: Stage) -> None:
    topic = await stage.kafka_topic(partitions=2)
    traffic = stage.traffic(topics=20)
    renamed = f"renamed-{stage.unique}"
    async with stage.running(stage.mapping(topic)) as service:
        await traffic.burst(1_000)
        await pause(service)
        await traffic.burst(3_000)
        await patched(service, {"mqtt": {"client_id": renamed}})
        await resume(service)
        await traffic.burst(1_000)
        history = await stage.outcome(service, topic, traffic.published)
        status = await service.status("m")
        assert not await session_exists(stage.mosquitto.host, stage.mosquitto.port, stage.client_id, stage.protocol)
    assert history.problems() == []
    assert status["mqtt"]["client_id"] == renamed
    assert status["counters"]["sessions_lost"] == 0


async def test_a_client_id_changed_in_the_middle_of_traffic_loses_nothing(stage: Stage) -> None:
    topic = await stage.kafka_topic(partitions=2)
    traffic = stage.traffic(topics=20)
    async with stage.running(stage.mapping(topic)) as service:
        async with traffic.flowing(2_000, at_least=10_000):
            await service.wait_status("m", lambda s: s["counters"]["delivered"] > 1_000, "delivering")
            await edit(service, {"mqtt": {"client_id": f"renamed-{stage.unique}"}})
        history = await stage.outcome(service, topic, traffic.published)
    # While both sessions are subscribed the broker gives each message to both, so there are repeats; never a loss,
    # and never a message before an earlier one.
    assert history.problems(repeats_allowed=len(traffic.published)) == []


async def test_filters_changed_while_paused_are_unsubscribed_on_resume(stage: Stage) -> None:
    topic = await stage.kafka_topic()
    old, new = f"{stage.unique}/old", f"{stage.unique}/new"
    async with stage.running(stage.mapping(topic, mqtt={"topic": [old, new]})) as service:
        await pause(service)
        queued = [(old, b"queued")]
        await stage.publish(queued)
        await patched(service, {"mqtt": {"topic": new}})
        await resume(service)
        # What was queued for the old filter is forwarded all the same; what comes now is not.
        messages = [*queued, (new, b"1")]
        await stage.publish([(new, b"1")])
        assert (await stage.outcome(service, topic, messages)).problems() == []
        await stage.publish([(old, b"unwanted"), (new, b"2")])
        assert (await stage.outcome(service, topic, [*messages, (new, b"2")])).problems() == []
        # Nor does the broker queue it while the mapping is away.
        await pause(service)
        await stage.publish([(old, b"unwanted too"), (new, b"3")])
        await resume(service)
        assert (await stage.outcome(service, topic, [*messages, (new, b"2"), (new, b"3")])).problems() == []
        assert set((await service.status("m"))["mqtt"]["granted_qos"]) == {new}


async def test_reset_session_forgets_what_the_broker_queued(stage: Stage) -> None:
    topic = await stage.kafka_topic()
    async with stage.running(stage.mapping(topic)) as service:
        before = [(f"{stage.unique}/a", b"before")]
        await stage.publish(before)
        assert (await stage.outcome(service, topic, before)).problems() == []
        response = await service.api.post("/api/v1/mappings/m/reset-session")
        assert response.status_code == 409, "it is not paused"
        await pause(service)
        await stage.publish([(f"{stage.unique}/a", b"%d" % n) for n in range(100)])
        await act(service, "reset-session")
        await resume(service)
        after = [(f"{stage.unique}/a", b"after")]
        await stage.publish(after)
        assert (await stage.outcome(service, topic, [*before, *after])).problems() == []
        assert (await quiet(service))["counters"]["sessions_lost"] == 0
