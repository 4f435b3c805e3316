"""What a record looks like, byte for byte, and payloads of every size."""

from __future__ import annotations

import base64
from typing import Any

import pytest

from tests.checking import java_partition
from tests.forwarding import Stage, quiet

# As large as Kafka takes by default (max.message.bytes is 1,048,588), with some room for the record around it.
LARGE = 900_000


async def test_the_key_is_the_topic_and_places_the_record_as_java_does(stage: Stage) -> None:
    topic = await stage.kafka_topic(partitions=7)
    messages = [(f"{stage.unique}/{n}/{'x' * (n % 9)}", b"%d" % n) for n in range(200)]
    async with stage.running(stage.mapping(topic)):
        await stage.publish(messages)
        records = await stage.kafka.wait_for_records(topic, len(messages))
    assert sorted((r.key, r.value) for r in records) == sorted((t.encode(), p) for t, p in messages)
    for record in records:
        assert record.partition == java_partition(record.key or b"", 7)
        assert record.headers == ()


async def test_without_a_key_the_topic_still_decides_the_partition(stage: Stage) -> None:
    topic = await stage.kafka_topic(partitions=5)
    messages = [(f"{stage.unique}/{n % 20}", b"%d %d" % (n % 20, n)) for n in range(400)]
    async with stage.running(stage.mapping(topic, kafka={"key": None})):
        await stage.publish(messages)
        records = await stage.kafka.wait_for_records(topic, len(messages))
    assert {r.key for r in records} == {None}
    arrived: dict[str, list[bytes]] = {}
    for record in records:
        name = f"{stage.unique}/{(record.value or b'').split()[0].decode()}"
        assert record.partition == java_partition(name.encode(), 5)
        arrived.setdefault(name, []).append(record.value or b"")
    for name, values in arrived.items():
        assert values == [payload for published, payload in messages if published == name]
    assert len(records) == len(messages)


async def test_templates_make_the_key_and_the_headers(stage: Stage) -> None:
    topic = await stage.kafka_topic(partitions=5)
    headers = {"from": "mqtt:{topic}", "mapping": "{mapping}", "level": "{topic[2]}", "fixed": "é"}
    mapping = stage.mapping(topic, kafka={"key": "{topic[1]}-{topic[2]}", "headers": headers})
    messages = [(f"{stage.unique}/{a}/{b}", b"%d%d" % (a, b)) for a in range(5) for b in range(5)]
    async with stage.running(mapping):
        await stage.publish(messages)
        records = await stage.kafka.wait_for_records(topic, len(messages))
    expected = [
        (
            f"{name.split('/')[1]}-{name.split('/')[2]}".encode(),
            payload,
            (
                ("from", f"mqtt:{name}".encode()),
                ("mapping", b"m"),
                ("level", name[-1].encode()),
                ("fixed", "é".encode()),
            ),
        )
        for name, payload in messages
    ]
    assert sorted((r.key, r.value, r.headers) for r in records) == sorted(expected)
    assert all(r.partition == java_partition(r.key or b"", 5) for r in records)


async def test_wrapped_payloads_are_the_seeds_byte_for_byte(stage: Stage) -> None:
    topic = await stage.kafka_topic()
    payloads = [b"", b"hello", bytes(range(256)), "grüße".encode(), b'{"a": 1}']
    names = [f"{stage.unique}/plain", f"{stage.unique}/größe/温度/🌡", f'{stage.unique}/with "quotes" and \\']
    messages = [(name, payload) for name in names for payload in payloads]
    async with stage.running(stage.mapping(topic, wrap_as_json=True)):
        await stage.publish(messages)
        records = await stage.kafka.wait_for_records(topic, len(messages))
    expected = []
    for name, payload in messages:
        escaped = name.replace("\\", "\\\\").replace('"', '\\"')
        encoded = base64.b64encode(payload).decode()
        expected.append((name.encode(), f'{{"topic":"{escaped}","payload":"{encoded}"}}'.encode()))
    assert [(r.key, r.value) for r in records] == expected


async def test_payloads_of_every_size_and_topics_in_every_script_arrive_as_they_are(stage: Stage) -> None:
    topic = await stage.kafka_topic()
    payloads = [b"", b"\x00", b"x", bytes(range(256)) * 16, b"y" * 70_000, b"z" * LARGE, b""]
    names = [f"{stage.unique}/{name}" for name in ("a", "größe", "温度/室内", "🌡/😀", "ع/ש", "a b/ c", "$x", "")]
    messages = [(name, payload) for name in names for payload in payloads]
    async with stage.running(stage.mapping(topic)):
        await stage.publish(messages, window=20)
        records = await stage.kafka.wait_for_records(topic, len(messages))
    assert [(r.key, r.value) for r in records] == [(name.encode(), payload) for name, payload in messages]


async def test_a_message_larger_than_the_whole_buffer_is_admitted_alone(stage: Stage) -> None:
    topic = await stage.kafka_topic()
    messages = [(f"{stage.unique}/{n % 3}", b"%d " % n + b"x" * (LARGE if n % 10 == 5 else 300)) for n in range(60)]
    async with stage.running(stage.mapping(topic, buffer_bytes=1024)) as service:
        await stage.publish(messages, window=20)
        records = await stage.kafka.wait_for_records(topic, len(messages))
        status = await quiet(service)
    assert [(r.key, r.value) for r in records] == [(name.encode(), payload) for name, payload in messages]
    assert status["counters"]["reconnects"] == 0


@pytest.mark.parametrize("protocol", ["5"])
@pytest.mark.parametrize("qos", [0, 1, 2])
async def test_overlapping_filters_forward_a_message_once(stage: Stage, qos: int) -> None:
    topic = await stage.kafka_topic()
    filters = [f"{stage.unique}/+/b", f"{stage.unique}/a/+", f"{stage.unique}/a/b", f"{stage.unique}/+/+/c"]
    traffic = [(f"{stage.unique}/{'a' if n % 2 else 'z'}/b", b"%d" % n) for n in range(1_000)]
    traffic += [(f"{stage.unique}/a/x", b"x"), (f"{stage.unique}/a/b/c", b"c")]
    mapping = stage.mapping(topic, mqtt={"topic": filters, "qos": qos, "receive_maximum": 500})
    async with stage.running(mapping) as service:
        await stage.publish(traffic, qos)
        history = await stage.outcome(service, topic, traffic)
        status = await quiet(service)
    assert history.problems() == []
    assert status["counters"]["received"] == len(traffic)
    assert status["counters"]["deduplicated"] == 500, "Mosquitto sends one copy per filter"
    assert status["warnings"] == []


@pytest.mark.parametrize("protocol", ["5"])
async def test_a_retained_message_that_matches_overlapping_filters_is_forwarded_once(stage: Stage) -> None:
    """Each SUBSCRIBE replays it; what the filters before it have forwarded is an extra copy."""
    topic = await stage.kafka_topic()
    retained = [(f"{stage.unique}/a/b", b"retained"), (f"{stage.unique}/z/b", b"other"), (f"{stage.unique}/a/x", b"x")]
    await stage.publish(retained, retain=True)
    filters = [f"{stage.unique}/+/b", f"{stage.unique}/a/+"]
    async with stage.running(stage.mapping(topic, mqtt={"topic": filters})) as service:
        history = await stage.outcome(service, topic, retained)
    assert history.problems() == []


@pytest.mark.parametrize("protocol", ["3.1.1"])
async def test_overlapping_filters_over_311_are_forwarded_with_a_warning(stage: Stage) -> None:
    topic = await stage.kafka_topic()
    filters = [f"{stage.unique}/+/b", f"{stage.unique}/a/+"]
    traffic = [(f"{stage.unique}/a/b", b"%d" % n) for n in range(500)]
    async with stage.running(stage.mapping(topic, mqtt={"topic": filters})) as service:
        await stage.publish(traffic)
        history = await stage.outcome(service, topic, traffic)
        warnings: list[Any] = (await service.status("m"))["warnings"]
    assert history.problems(repeats_allowed=len(traffic)) == []
    assert [warning for warning in warnings if "duplicates are possible" in warning]
