"""A real Kafka that freezes: nothing is written after `abandon`, whatever was on its way."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from aiokafka.errors import KafkaError
from aiokafka.structs import TopicPartition

from server.core.kafka_options import translate
from server.kafka.producer import Cluster, Producer
from tests.answers import send

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tests.brokers import Kafka, KafkaCluster


async def _producer(kafka: KafkaCluster, topic: str) -> Producer:
    producer = await Producer.start(Cluster(kafka.bootstrap, translate({})), max_batch_size=1_000_000)
    await producer.fetch_metadata([topic])
    return producer


async def test_a_confirmed_batch_is_in_kafka(kafka: KafkaCluster, kafka_topic: Callable[..., Awaitable[str]]) -> None:
    topic = await kafka_topic("producer", partitions=3)
    producer = await _producer(kafka, topic)
    try:
        assert producer.partitions(topic) == 3
        assert producer.leaderless(topic) == []
        assert not producer.may_not_see(topic)
        assert producer.partitions("never-heard-of") == 0
        await send(producer, topic, 2, b"1", b"2")
        assert await producer.ask_for_metadata()
    finally:
        await producer.abandon()
    assert [(record.partition, record.value) for record in await kafka.read_all(topic)] == [(2, b"1"), (2, b"2")]


@pytest.mark.parametrize("left", [0, 1, 3])
async def test_a_partitions_sequence_numbers_begin_anew_after_two_thousand_million_records(
    kafka: KafkaCluster, kafka_topic: Callable[..., Awaitable[str]], left: int
) -> None:
    """At 5,000 messages a second that is every five days. After a negative number Kafka says INVALID_RECORD."""
    topic = await kafka_topic("wrapped", partitions=1)
    producer = await _producer(kafka, topic)
    try:
        producer._producer._txn_manager._sequence_numbers[TopicPartition(topic, 0)] = 2**31 - left - 1
        for batch in (b"abc", b"de", b"f"):
            async with asyncio.timeout(20):
                await send(producer, topic, 0, *(bytes([each]) for each in batch))
    finally:
        await producer.abandon()
    assert b"".join([record.value or b"" for record in await kafka.read_all(topic)]) == b"abcdef"


async def test_what_was_never_sent_is_not_sent_after_abandon(own_kafka: Callable[..., Kafka]) -> None:
    """Kafka holds at most the requests it had when it froze; what was queued behind them never leaves."""
    kafka = own_kafka()
    topic = await kafka.create_topic("frozen", partitions=8)
    producer = await _producer(kafka, topic)
    for partition in range(8):
        await send(producer, topic, partition, b"before")
    kafka.pause()
    futures = [send(producer, topic, partition, b"frozen") for partition in range(4)]
    await asyncio.sleep(1)  # the requests are in Kafka's socket
    futures += [send(producer, topic, partition, b"late") for partition in range(4, 8)]
    await asyncio.wait(futures, timeout=1)
    loop = asyncio.get_running_loop()
    begin = loop.time()
    await producer.abandon()
    assert loop.time() - begin < 5
    kafka.resume()
    for future in futures:
        assert future.done()
        assert future.exception() is not None
    with pytest.raises(KafkaError, match="abandoned"):
        send(producer, topic, 0, b"later")
    # Whatever Kafka still finds in its socket it takes at once; after that nothing may come.
    await asyncio.sleep(3)
    settled = await kafka.end_offsets(topic)
    fresh = await _producer(kafka, topic)
    try:
        for partition in range(8):
            await send(fresh, topic, partition, b"after")
    finally:
        await fresh.abandon()
    await asyncio.sleep(5)
    assert await kafka.end_offsets(topic) == {partition: end + 1 for partition, end in settled.items()}
    values = [record.value for record in await kafka.read_all(topic)]
    assert b"late" not in values
    assert values.count(b"before") == values.count(b"after") == 8


async def test_nothing_is_left_running_after_abandon(own_kafka: Callable[..., Kafka]) -> None:
    kafka = own_kafka()
    topic = await kafka.create_topic("left", partitions=1)
    before = asyncio.all_tasks()
    producer = await _producer(kafka, topic)
    kafka.kill()
    future = send(producer, topic, 0, b"lost")
    await asyncio.sleep(1)
    await producer.abandon()
    with pytest.raises(Exception, match=r"abandoned|closed|Cancel"):
        await future
    async with asyncio.timeout(5):
        while asyncio.all_tasks() - before:
            await asyncio.sleep(0.05)
    await producer.abandon()  # once more does no harm


async def test_a_connection_that_uvloop_has_closed_already_is_replaced(
    kafka: KafkaCluster, kafka_topic: Callable[..., Awaitable[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a TCP reset uvloop raises RuntimeError on writing, until aiokafka hears that the connection is lost."""
    topic = await kafka_topic("reset", partitions=1)
    producer = await _producer(kafka, topic)

    def closed(_: object) -> None:
        raise RuntimeError("unable to perform operation on <TCPTransport closed=True>; the handler is closed")

    try:
        await send(producer, topic, 0, b"before")
        for connection in _connections(producer):
            monkeypatch.setattr(connection._writer, "write", closed)
            monkeypatch.setattr(connection._writer, "writelines", closed)
        asked = producer.ask_for_metadata()
        sent = send(producer, topic, 0, b"after")
        async with asyncio.timeout(10):
            await asyncio.gather(asked, sent)
        producer.check()
    finally:
        await producer.abandon()
    assert [record.value for record in await kafka.read_all(topic)] == [b"before", b"after"]


async def test_a_client_whose_own_task_has_crashed_is_noticed_and_still_ends(
    kafka: KafkaCluster, kafka_topic: Callable[..., Awaitable[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    topic = await kafka_topic("crashed", partitions=1)
    producer = await _producer(kafka, topic)
    await send(producer, topic, 0, b"before")
    client = producer._producer.client

    async def crash(*_: object) -> bool:
        raise ValueError("a bug in aiokafka")

    monkeypatch.setattr(client, "_metadata_update", crash)
    producer.check()
    producer.ask_for_metadata()
    await asyncio.wait([client._sync_task], timeout=5)
    with pytest.raises(KafkaError, match="a bug in aiokafka"):
        producer.check()
    connections = _connections(producer)
    await producer.abandon()
    assert connections
    assert not any(connection.connected() for connection in connections)


def _connections(producer: Producer) -> list[Any]:
    return list(producer._producer.client._conns.values())
