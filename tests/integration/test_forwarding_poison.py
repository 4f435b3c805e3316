"""Messages Kafka refuses for their own sake, and messages no record can be made of, under each policy."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import mqtt5
import pytest

from tests.checking import check_history
from tests.devices import connected
from tests.forwarding import Stage, act, quiet, resume

if TYPE_CHECKING:
    from tests.devices import Message

LIMIT = 20_000
SMALL_LIMIT = {"max.message.bytes": str(LIMIT)}
GOOD = 4_000
# A failure is a fault, and a fault may repeat what was in flight: everything here fits into the window.
IN_FLIGHT = GOOD
TOO_LARGE = b"x" * (LIMIT + 5_000)


def around(stage: Stage, poison: list[Message]) -> list[Message]:
    """Put the poison messages in the middle of thousands of good ones."""
    good = stage.traffic(topics=20).next(GOOD)
    step = GOOD // (len(poison) + 1)
    for n, message in reversed(list(enumerate(poison, 1))):
        good.insert(n * step, message)
    return good


def large(stage: Stage, count: int) -> list[Message]:
    """Messages that are too large, on topics that good ones use."""
    return [(f"{stage.unique}/{n}", b"%d " % n + TOO_LARGE) for n in range(count)]


async def test_too_large_under_stop_fails_and_loses_nothing_once_the_limit_is_raised(stage: Stage) -> None:
    topic = await stage.kafka_topic(partitions=2, config=SMALL_LIMIT)
    messages = around(stage, large(stage, 2))
    async with stage.running(stage.mapping(topic)) as service:
        await stage.publish(messages)
        status = await service.wait_state("m", "failed")
        assert status["reason"].startswith("poison_message_too_large: ")
        # They may be in different partitions, so either may be the first that Kafka refuses.
        assert any(f"{stage.unique}/{n}'" in status["reason"] for n in range(2))
        assert status["counters"]["dropped"] == {}
        # Resuming without a remedy fails again, and still loses nothing.
        since = status["since"]
        await act(service, "resume")
        await service.wait_status("m", lambda s: s["state"] == "failed" and s["since"] != since, "failed again")
        await stage.kafka.set_topic_config(topic, {"max.message.bytes": "1000000"})
        await resume(service)
        history = await stage.outcome(service, topic, messages)
    assert history.problems(repeats_allowed=2 * IN_FLIGHT) == []


async def test_too_large_under_drop_is_counted_and_the_others_arrive(stage: Stage) -> None:
    topic = await stage.kafka_topic(partitions=2, config=SMALL_LIMIT)
    poison = large(stage, 3)
    messages = around(stage, poison)
    async with stage.running(stage.mapping(topic, on_poison="drop")) as service:
        await stage.publish(messages)
        history = await stage.outcome(service, topic, [m for m in messages if m not in poison])
        status = await service.status("m")
    assert history.problems() == []
    assert status["counters"]["dropped"] == {"message_too_large": 3}
    assert status["counters"]["delivered"] == GOOD


async def test_too_large_under_dead_letter_keeps_the_bytes_and_says_why(stage: Stage) -> None:
    topic = await stage.kafka_topic(partitions=2, config=SMALL_LIMIT)
    dead = await stage.kafka_topic("dead")
    poison = large(stage, 3)
    messages = around(stage, poison)
    mapping = stage.mapping(topic, on_poison="dead_letter", dead_letter_topic=dead)
    async with stage.running(mapping) as service:
        await stage.publish(messages)
        history = await stage.outcome(service, topic, [m for m in messages if m not in poison])
        letters = await stage.kafka.wait_for_records(dead, 3)
        status = await quiet(service)
    assert history.problems() == []
    assert sorted((dict(r.headers)["mqtt.topic"].decode(), r.value) for r in letters) == poison
    assert {dict(r.headers)["dead_letter.reason"] for r in letters} == {b"message_too_large"}
    assert {dict(r.headers)["dead_letter.mapping"] for r in letters} == {b"m"}
    assert status["counters"]["dead_lettered"] == 3
    assert status["counters"]["dropped"] == {}


async def test_a_dead_letter_that_is_refused_too_fails_and_names_both_topics(stage: Stage) -> None:
    topic = await stage.kafka_topic(partitions=2, config=SMALL_LIMIT)
    dead = await stage.kafka_topic("dead", config=SMALL_LIMIT)
    poison = large(stage, 1)
    messages = around(stage, poison)
    mapping = stage.mapping(topic, on_poison="dead_letter", dead_letter_topic=dead)
    async with stage.running(mapping) as service:
        await stage.publish(messages)
        status = await service.wait_state("m", "failed")
        assert status["reason"].startswith("dead_letter_refused: ")
        assert repr(topic) in status["reason"]
        assert repr(dead) in status["reason"]
        assert status["counters"]["dead_lettered"] == 0
        assert status["counters"]["dropped"] == {}
        assert await stage.kafka.end_offsets(dead) == {0: 0}
        # Nothing was acknowledged that is not in Kafka: with room for it, everything is there.
        await stage.kafka.set_topic_config(dead, {"max.message.bytes": "1000000"})
        await resume(service)
        history = await stage.outcome(service, topic, [m for m in messages if m not in poison])
        letters = await stage.kafka.wait_for_records(dead, 1)
        await quiet(service)
    assert history.problems(repeats_allowed=IN_FLIGHT) == []
    assert [r.value for r in letters] == [poison[0][1]]


def unmappable(stage: Stage) -> tuple[dict[str, Any], list[Message], list[Message]]:
    """A header that needs a third level, messages that have it or not, and those that have not."""
    good = [(f"{stage.unique}/{n % 20}/level", b"%d" % n) for n in range(GOOD)]
    bad = [(f"{stage.unique}/{n}", b"short %d" % n) for n in range(2)]
    messages = [*good[:1_000], bad[0], *good[1_000:3_000], bad[1], *good[3_000:]]
    return {"headers": {"third": "{topic[2]}"}}, messages, bad


async def test_not_mappable_under_stop_fails_and_an_edit_mends_it(stage: Stage) -> None:
    topic = await stage.kafka_topic(partitions=2)
    kafka, messages, bad = unmappable(stage)
    async with stage.running(stage.mapping(topic, kafka=kafka)) as service:
        await stage.publish(messages)
        status = await service.wait_state("m", "failed")
        assert status["reason"].startswith("poison_not_mappable: ")
        assert repr(bad[0][0]) in status["reason"]
        patch = {"kafka": {"headers": {"third": "{topic[1]}"}}}
        response = await service.api.patch("/api/v1/mappings/m", json=patch)
        assert response.status_code == 200, response.text
        history = await stage.outcome(service, topic, messages)
    assert history.problems(repeats_allowed=IN_FLIGHT) == []


async def test_not_mappable_under_drop_is_counted_and_the_others_arrive(stage: Stage) -> None:
    topic = await stage.kafka_topic(partitions=2)
    kafka, messages, bad = unmappable(stage)
    async with stage.running(stage.mapping(topic, kafka=kafka, on_poison="drop")) as service:
        await stage.publish(messages)
        history = await stage.outcome(service, topic, [m for m in messages if m not in bad])
        status = await service.status("m")
    assert history.problems() == []
    assert status["counters"]["dropped"] == {"not_mappable": 2}


async def test_not_mappable_under_dead_letter_keeps_the_bytes_and_says_why(stage: Stage) -> None:
    topic = await stage.kafka_topic(partitions=2)
    dead = await stage.kafka_topic("dead")
    kafka, messages, bad = unmappable(stage)
    mapping = stage.mapping(topic, kafka=kafka, on_poison="dead_letter", dead_letter_topic=dead)
    async with stage.running(mapping) as service:
        await stage.publish(messages)
        history = await stage.outcome(service, topic, [m for m in messages if m not in bad])
        letters = await stage.kafka.wait_for_records(dead, 2)
        status = await quiet(service)
    assert history.problems() == []
    assert check_history(letters, bad).problems() == []
    for letter in letters:
        headers = dict(letter.headers)
        assert headers["dead_letter.reason"] == b"not_mappable"
        assert b"needs topic level 2" in headers["dead_letter.detail"]
        assert headers["mqtt.topic"] == letter.key
    assert status["counters"]["dead_lettered"] == 2


@pytest.mark.parametrize("protocol", ["5"])
async def test_a_dead_letter_carries_what_the_message_brought_along(stage: Stage) -> None:
    dead = await stage.kafka_topic("dead")
    kafka, _, _ = unmappable(stage)
    mapping = stage.mapping(await stage.kafka_topic(), kafka=kafka, on_poison="dead_letter", dead_letter_topic=dead)
    properties: dict[str, Any] = {
        "content_type": "application/octet-stream",
        "response_topic": "answers",
        "correlation_data": b"\x00\xff",
        "message_expiry_interval": 3_600,
        "user_properties": [("site", "north"), ("site", "süd")],
    }
    async with stage.running(mapping), connected(stage.mosquitto.host, stage.mosquitto.port) as device:
        before = datetime.now(UTC)
        device.write(mqtt5.PublishPacket(f"{stage.unique}/short", b"\x00 raw", **properties).write())
        (letter,) = await stage.kafka.wait_for_records(dead, 1)
    headers = dict(letter.headers)
    assert letter.value == b"\x00 raw"
    assert headers["mqtt.topic"] == f"{stage.unique}/short".encode()
    assert before <= datetime.fromisoformat(headers["dead_letter.time"].decode()) + timedelta(milliseconds=1)
    assert headers["mqtt.content_type"] == b"application/octet-stream"
    assert headers["mqtt.response_topic"] == b"answers"
    assert headers["mqtt.correlation_data"] == b"\x00\xff"
    assert 3_500 < int(headers["mqtt.message_expiry_interval"]) <= 3_600  # what is left of it
    sites = [value.decode() for name, value in letter.headers if name == "mqtt.user_property.site"]
    assert sites == ["north", "süd"]


@pytest.mark.parametrize("protocol", ["5"])
async def test_poison_at_qos_2_is_dropped_and_nothing_repeated(stage: Stage) -> None:
    topic = await stage.kafka_topic(partitions=2, config=SMALL_LIMIT)
    poison = large(stage, 2)
    messages = around(stage, poison)
    mapping = stage.mapping(topic, on_poison="drop", mqtt={"qos": 2, "receive_maximum": 500})
    async with stage.running(mapping) as service:
        await stage.publish(messages, qos=2)
        history = await stage.outcome(service, topic, [m for m in messages if m not in poison])
        status = await service.status("m")
    assert history.problems() == []
    assert status["counters"]["dropped"] == {"message_too_large": 2}
