"""The main job on real brokers: nothing lost, nothing repeated, order kept; QoS, and mappings side by side."""

from __future__ import annotations

import pytest

from tests.devices import subscriber
from tests.forwarding import Stage, quiet

MESSAGES = 100_000


async def test_every_message_arrives_exactly_once_and_in_order(stage: Stage) -> None:
    topic = await stage.kafka_topic(partitions=4)
    traffic = stage.traffic(topics=100)
    async with stage.running(stage.mapping(topic)) as service:
        await traffic.burst(MESSAGES)
        history = await stage.outcome(service, topic, traffic.published)
        counters = (await service.status("m"))["counters"]
    assert history.problems() == []
    assert counters["received"] == counters["delivered"] == MESSAGES
    assert counters["reconnects"] == counters["sessions_lost"] == counters["deduplicated"] == 0
    ends = await stage.kafka.end_offsets(topic)
    assert sum(ends.values()) == MESSAGES
    assert all(ends.values()), f"100 topics should reach every partition: {ends}"


@pytest.mark.parametrize("qos", [0, 1, 2])
async def test_every_qos_is_forwarded_as_asked_for(stage: Stage, qos: int) -> None:
    topic = await stage.kafka_topic(partitions=2)
    # Mosquitto 2.0.11 overshoots the receive maximum at QoS 2, and then needs a long time for every ack.
    traffic = stage.traffic(topics=10, qos=qos)
    mapping = stage.mapping(topic, mqtt={"qos": qos, "receive_maximum": 500})
    async with stage.running(mapping) as service:
        await traffic.burst(3_000)
        history = await stage.outcome(service, topic, traffic.published)
        status = await service.status("m")
    granted = 1 if (stage.protocol, qos) == ("3.1.1", 2) else qos
    assert history.problems() == []
    assert status["mqtt"]["granted_qos"] == {f"{stage.unique}/#": granted}
    assert status["mqtt"]["protocol"] == stage.protocol
    capped = [warning for warning in status["warnings"] if "QoS 2 is capped at 1" in warning]
    assert len(capped) == (granted != qos)


@pytest.mark.parametrize("qos", [1, 2])
async def test_nothing_is_left_with_the_broker(stage: Stage, qos: int) -> None:
    topic = await stage.kafka_topic()
    traffic = stage.traffic(topics=10, qos=qos)
    async with stage.running(stage.mapping(topic, mqtt={"qos": qos, "receive_maximum": 500})) as service:
        await traffic.burst(2_000)
        assert (await stage.outcome(service, topic, traffic.published)).problems() == []
        assert await service.sigterm() == 0
    marker = [(f"{stage.unique}/marker", b"marker")]
    await stage.publish(marker)
    host, port, client_id = stage.mosquitto.host, stage.mosquitto.port, stage.client_id
    async with subscriber(host, port, stage.unique, client_id=client_id, clean_start=False) as session:
        assert [(m.topic, m.payload) for m in await session.wait(1)] == marker


async def test_a_message_that_several_mappings_match_reaches_each(stage: Stage) -> None:
    topics = [await stage.kafka_topic(f"each-{n}") for n in range(3)]
    mappings = [stage.mapping(topic, name=f"m{n}") for n, topic in enumerate(topics[:2])]
    mappings.append(stage.mapping(topics[2], name="m2", mqtt={"topic": f"{stage.unique}/+"}))
    traffic = stage.traffic(topics=5)
    async with stage.running(*mappings) as service:
        await traffic.burst(2_000)
        for n, topic in enumerate(topics):
            await quiet(service, f"m{n}")
            await stage.kafka.wait_for_records(topic, 2_000)
    for topic in topics:
        assert [(r.key, r.value) for r in await stage.kafka.read_all(topic)] == [
            (name.encode(), payload) for name, payload in traffic.published
        ]


async def test_a_missing_kafka_topic_disturbs_no_other_mapping(stage: Stage) -> None:
    topic = await stage.kafka_topic()
    missing = f"missing-{stage.unique}"
    traffic = stage.traffic(topics=10)
    service = stage.service(stage.mapping(topic), stage.mapping(missing, name="other"))
    async with service:
        await service.wait_ready()
        await service.wait_state("m")
        status = await service.wait_state("other", "retrying")
        assert status["reason"].startswith("kafka_topic_missing: ")
        assert missing in status["reason"]
        since = (await service.status("m"))["since"]
        await traffic.burst(5_000)
        assert (await stage.outcome(service, topic, traffic.published)).problems() == []
        status = await service.status("m")
        assert (status["state"], status["since"]) == ("running", since)
        assert (await service.status("other"))["state"] == "retrying"
        # Once somebody creates it, what waited arrives by itself.
        await stage.kafka.create_topic(missing)
        try:
            await service.wait_state("other")
            await stage.kafka.wait_for_records(missing, 5_000)
            await quiet(service, "other")
            records = await stage.kafka.read_all(missing)
        finally:
            await stage.kafka.delete_topic(missing)
    assert [(r.key, r.value) for r in records] == [(name.encode(), body) for name, body in traffic.published]


async def test_metrics_show_the_counters(stage: Stage) -> None:
    topic = await stage.kafka_topic()
    async with stage.running(stage.mapping(topic)) as service:
        await stage.traffic().burst(250)
        await stage.kafka.wait_for_records(topic, 250)
        await quiet(service)
        response = await service.api.get("/metrics")
    assert response.status_code == 200
    lines = set(response.text.splitlines())
    for line in (
        'mkf_messages_received_total{mapping="m"} 250.0',
        'mkf_messages_delivered_total{mapping="m"} 250.0',
        'mkf_messages_deduplicated_total{mapping="m"} 0.0',
        'mkf_messages_dead_lettered_total{mapping="m"} 0.0',
        'mkf_delivery_latency_seconds_count{mapping="m"} 250.0',
        'mkf_sessions_lost_total{mapping="m"} 0.0',
        'mkf_mapping_state{mapping="m",state="running"} 1.0',
        'mkf_mapping_state{mapping="m",state="retrying"} 0.0',
        'mkf_mqtt_connected{mapping="m"} 1.0',
        'mkf_in_flight_messages{mapping="m"} 0.0',
        'mkf_in_flight_bytes{mapping="m"} 0.0',
        "mkf_store_up 1.0",
    ):
        assert line in lines, line
