"""Kafka's answers on one connection: each to its request, none waited for longer than the time that is asked for."""

from __future__ import annotations

import asyncio
import socket
import struct
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
import uvloop
from aiokafka.client import AIOKafkaClient
from aiokafka.conn import create_conn
from aiokafka.errors import IncompatibleBrokerVersion, KafkaConnectionError, KafkaError, RequestTimedOutError
from aiokafka.protocol.produce import ProduceResponse_v5, ProduceResponse_v7

from server.kafka.connection import Connection, use
from server.kafka.produce_request import Request
from tests.realtime import until
from tests.scriptedkafka import scripted_kafka
from tests.virtualtime import in_virtual_time

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.scriptedkafka import ScriptedKafka

TIMEOUT = 0.2
ATTEMPTS = 10
LARGE = Request(-1, 1_000, [("t", [(1, bytearray(30_000_000))])])  # more than the sockets of both sides hold
ANSWER = ProduceResponse_v7([], 0).encode()
REQUEST = Request(-1, 1_000, [("t", [(0, bytearray(61))])])


@asynccontextmanager
async def connected() -> AsyncIterator[tuple[ScriptedKafka, Connection]]:
    use()
    async with scripted_kafka({0: 1}) as kafka:
        client = AIOKafkaClient(bootstrap_servers=kafka.bootstrap, request_timeout_ms=round(TIMEOUT * 1000))
        await client.bootstrap()
        assert await client.ready(1)
        connection = next(each for (node, _), each in client._conns.items() if node == 1)
        assert isinstance(connection, Connection)
        try:
            yield kafka, connection
        finally:
            await client.close()


def produce(connection: Connection, request: Request) -> asyncio.Future[Any]:
    """Ask; the future is the asker."""
    answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    connection.produce(request, answer)
    return answer


async def test_an_answer_that_is_late_costs_the_connection_and_whoever_waits_hears_of_it() -> None:
    async with connected() as (kafka, connection):
        kafka.answering[1].clear()
        late, behind = produce(connection, REQUEST), produce(connection, REQUEST)
        with pytest.raises(RequestTimedOutError):
            await late
        with pytest.raises(KafkaConnectionError):
            await behind
        assert not connection.connected()
        kafka.answering[1].set()


async def test_what_a_connection_has_not_written_when_an_answer_is_late_is_never_written() -> None:
    async with connected() as (kafka, connection):
        kafka.reading[1].clear()
        held, late = produce(connection, REQUEST), produce(connection, LARGE)  # the first it reads already
        await held
        transport = connection._writer.transport
        address = transport.get_extra_info("sockname")
        with pytest.raises(RequestTimedOutError):
            await late
        assert transport.get_write_buffer_size() == 0
        kafka.reading[1].set()
        await until(lambda: address not in [peer.get_extra_info("peername") for _, peer in kafka.connections])
        assert kafka.produced == [(1, [0])]


async def test_an_answer_in_time_is_taken_and_those_behind_it_have_their_own_time() -> None:
    async with connected() as (kafka, connection):
        loop = asyncio.get_running_loop()
        kafka.answering[1].clear()
        first = produce(connection, REQUEST)
        await asyncio.sleep(TIMEOUT * 0.6)
        begin = loop.time()
        second = produce(connection, REQUEST)
        number, _, _ = connection._requests[0]
        connection._handle_frame(struct.pack(">i", number) + ANSWER)
        await first
        with pytest.raises(RequestTimedOutError):
            await second
        assert loop.time() - begin >= TIMEOUT * 0.95
        kafka.answering[1].set()


async def test_an_answer_to_another_request_ends_the_connection_and_what_came_with_it_is_not_looked_at(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with connected() as (kafka, connection):
        kafka.answering[1].clear()
        answer = produce(connection, REQUEST)
        frame = struct.pack(">i", 999) + ANSWER
        connection._protocol.data_received(2 * (struct.pack(">i", len(frame)) + frame))
        with pytest.raises(KafkaConnectionError) as caught:
            await answer
        assert "instead of" in str(caught.value.__cause__)
        assert not [record for record in caplog.records if record.levelname == "ERROR"]
        kafka.answering[1].set()


@pytest.mark.parametrize("highest", [7, 5])
async def test_an_answer_that_nobody_waits_for_any_more_is_passed_over(highest: int) -> None:
    unnoticed: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: unnoticed.append(context))
    async with connected() as (kafka, connection):
        connection._versions = {**connection._versions, 0: (0, highest)}
        kafka.answering[1].clear()
        given_up, wanted = produce(connection, REQUEST), produce(connection, REQUEST)
        given_up.cancel()
        kafka.answering[1].set()
        await wanted
    assert not unnoticed


async def test_of_a_broker_older_than_kafka_2_1_an_answer_is_taken_and_a_late_one_costs_the_connection_too() -> None:
    async with connected() as (kafka, connection):
        connection._versions = {**connection._versions, 0: (0, 5)}
        kafka.answering[1].clear()
        taken, late = produce(connection, REQUEST), produce(connection, REQUEST)
        number, _, _ = connection._requests[0]
        answer = ProduceResponse_v5([("t", [(0, 0, 7, -1, 0)])], 0)
        connection._handle_frame(struct.pack(">i", number) + answer.encode())
        assert (await taken).topics == answer.topics
        with pytest.raises(RequestTimedOutError):
            await late
        assert not connection.connected()
        kafka.answering[1].set()


@in_virtual_time
async def test_a_broker_that_speaks_no_known_version_is_not_taken_for_a_broken_connection() -> None:
    connection = Connection("k", 1)
    connection._writer = object()
    connection._versions = {3: (0, 13)}
    with pytest.raises(IncompatibleBrokerVersion):
        produce(connection, REQUEST)
    connection._versions = {0: (8, 13)}
    with pytest.raises(NotImplementedError):
        produce(connection, REQUEST)
    connection._writer = None
    with pytest.raises(KafkaError, match="No connection"):
        produce(connection, REQUEST)


async def test_an_answer_that_ends_too_early_costs_the_connection_and_its_asker_hears_of_it() -> None:
    async with connected() as (kafka, connection):
        kafka.answering[1].clear()
        answer = produce(connection, REQUEST)
        number, _, _ = connection._requests[0]
        connection._protocol.data_received(struct.pack(">iih", 6, number, 0))
        with pytest.raises(KafkaConnectionError) as caught:
            await answer
        assert isinstance(caught.value.__cause__, struct.error)
        assert not connection.connected()
        kafka.answering[1].set()


async def test_a_broker_that_closes_in_the_middle_of_an_answer_says_so_to_who_asked() -> None:
    async with connected() as (kafka, connection):
        kafka.answering[1].clear()
        answer = produce(connection, REQUEST)
        connection._protocol.data_received(struct.pack(">i", 100) + b"begun")
        kafka.reset(1)
        with pytest.raises(KafkaConnectionError) as caught:
            await answer
        assert isinstance(caught.value.__cause__, asyncio.IncompleteReadError | ConnectionResetError)
        kafka.answering[1].set()


def test_a_proxy_that_accepts_and_closes_is_noticed_at_once_on_a_busy_loop() -> None:
    """The end is read before the task goes on that connects; what is written then is answered by nobody."""

    async def connect() -> None:
        loop = asyncio.get_running_loop()
        accepting = socket.create_server(("127.0.0.1", 0))
        accepting.settimeout(10)
        over = False

        def close() -> None:
            for _ in range(ATTEMPTS):
                peer, _ = accepting.accept()
                peer.close()

        def busy() -> None:
            time.sleep(0.001)
            if not over:
                loop.call_soon(busy)

        closing = loop.run_in_executor(None, close)
        busy()
        try:
            async with asyncio.timeout(10):
                for _ in range(ATTEMPTS):
                    with pytest.raises(KafkaConnectionError):
                        await create_conn("127.0.0.1", accepting.getsockname()[1])
        finally:
            over = True
            try:
                await closing
            finally:
                accepting.close()

    use()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(connect())


async def test_who_asked_for_what_is_late_hears_of_it_before_the_connection_looks_closed() -> None:
    """So it must not ask again then and there: that would go over a connection that is about to be closed."""
    async with connected() as (kafka, connection):
        kafka.answering[1].clear()
        answer = produce(connection, REQUEST)
        looked: list[bool] = []
        set_exception = answer.set_exception

        class Asker:
            done = staticmethod(answer.done)

            def set_exception(self, error: BaseException) -> None:
                looked.append(connection.connected())
                set_exception(error)

        number, body, _ = connection._requests.pop()
        connection._requests.append((number, body, Asker()))
        with pytest.raises(RequestTimedOutError):
            await answer
        assert looked == [True]
        kafka.answering[1].set()
