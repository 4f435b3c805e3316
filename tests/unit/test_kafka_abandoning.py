"""Nothing is written once a producer was abandoned, and nothing of it is left, whatever it was doing."""

from __future__ import annotations

import asyncio
import gc
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest

from server.core.kafka_options import translate
from server.kafka.producer import Cluster, Producer
from tests.answers import send
from tests.realtime import until
from tests.scriptedkafka import TASK, ScriptedKafka, scripted_kafka

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

# More than the sockets of both sides hold.
LARGE = b"x" * 30_000_000


@asynccontextmanager
async def started(leaders: dict[int, int]) -> AsyncIterator[tuple[ScriptedKafka, Producer]]:
    """A cluster with a producer; at the end, when it must have been abandoned, nothing of it may be left."""
    reported: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context))
    async with scripted_kafka(leaders) as kafka:
        producer = await Producer.start(Cluster(kafka.bootstrap, translate({})), max_batch_size=2 * len(LARGE))
        await producer.fetch_metadata(["t"])
        yield kafka, producer
        left = {task for task in asyncio.all_tasks() if task.get_name() != TASK} - {asyncio.current_task()}
        assert not left
    gc.collect()
    await asyncio.sleep(0)
    assert reported == []


async def all_connected(kafka: ScriptedKafka, producer: Producer) -> None:
    for partition in kafka.leaders:
        await send(producer, "t", partition, b"v")
    kafka.produced.clear()


async def unconnected(kafka: ScriptedKafka, producer: Producer, *nodes: int) -> None:
    """Let the producer have to connect to these nodes anew, and their first answer wait for the test."""
    for node in nodes:
        kafka.greeting[node].clear()
        kafka.reset(node)
    connections = producer._producer.client._conns
    await until(lambda: not any(connections[at].connected() for at in list(connections) if at[0] in nodes))


async def test_a_connection_in_the_making_is_given_up() -> None:
    async with started({0: 1, 1: 2}) as (kafka, producer):
        await all_connected(kafka, producer)
        await unconnected(kafka, producer, 2)
        future = send(producer, "t", 1, b"v")
        await until(lambda: kafka.ungreeted)
        abandoning = asyncio.create_task(producer.abandon())
        await asyncio.sleep(0)
        kafka.greeting[2].set()
        await abandoning
        assert future.exception() is not None
        await until(lambda: not kafka.connections)
        assert kafka.produced == []


async def test_who_waits_for_another_connection_to_be_made_connects_no_more() -> None:
    async with started({0: 1, 1: 2, 2: 3}) as (kafka, producer):
        await all_connected(kafka, producer)
        await unconnected(kafka, producer, 2, 3)
        futures = [send(producer, "t", 1, b"v"), send(producer, "t", 2, b"v")]
        await until(lambda: kafka.ungreeted)
        await producer.abandon()
        assert all(future.exception() is not None for future in futures)
        kafka.greeting[2].set()
        kafka.greeting[3].set()
        await until(lambda: not kafka.connections)
        assert kafka.produced == []


@pytest.mark.filterwarnings("ignore:Unclosed AIOKafkaConnection:ResourceWarning")
async def test_a_start_that_takes_too_long_leaves_no_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cancelled while it waits for metadata, aiokafka forgets the connection over which they were to come.

    It closes it when it is collected, with a warning; a warning that is an error would keep it from that.
    """
    monkeypatch.setattr("server.kafka.producer.START_TIMEOUT_SECONDS", 0.1)
    async with scripted_kafka({0: 1}) as kafka:
        kafka.describing[1].clear()
        with pytest.raises(TimeoutError):
            await Producer.start(Cluster(kafka.bootstrap, translate({})), max_batch_size=1_000)
        gc.collect()  # what was cancelled holds it in cycles
        kafka.describing[1].set()
        await until(lambda: not kafka.connections)


async def test_answers_that_several_nodes_owe_are_not_waited_for() -> None:
    async with started({0: 1, 1: 2, 2: 3}) as (kafka, producer):
        await all_connected(kafka, producer)
        for node in (1, 2, 3):
            kafka.answering[node].clear()
        futures = [send(producer, "t", partition, b"v") for partition in (0, 1, 2)]
        await until(lambda: len(kafka.produced) == 3)
        async with asyncio.timeout(1):
            await producer.abandon()
        assert all(future.exception() is not None for future in futures)
        for node in (1, 2, 3):
            kafka.answering[node].set()


async def test_what_a_node_has_not_read_yet_is_not_written_later() -> None:
    async with started({0: 1, 1: 1}) as (kafka, producer):
        await all_connected(kafka, producer)
        kafka.reading[1].clear()
        futures = [send(producer, "t", 0, b"v"), send(producer, "t", 1, LARGE)]
        await until(lambda: kafka.produced)  # it was reading already
        await asyncio.wait(futures[:1])
        await until(lambda: _unwritten(producer))
        await producer.abandon()
        assert futures[1].exception() is not None
        kafka.reading[1].set()
        await until(lambda: not kafka.connections)
        assert kafka.produced == [(1, [0])]


def _unwritten(producer: Producer) -> int:
    """Bytes that wait in this process for room in a socket."""
    transports = [each._writer.transport for each in producer._producer.client._conns.values() if each._writer]
    return sum(transport.get_write_buffer_size() for transport in transports)
