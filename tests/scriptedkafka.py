"""A Kafka cluster of as many nodes as wanted that stores nothing: enough of the protocol for a producer, over TCP.

Partition n of the topic "t" is led by `leaders[n]`. A node answers unless the test holds something back.
"""

from __future__ import annotations

import asyncio
import struct
from collections import defaultdict
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from aiokafka.protocol.admin import ApiVersionResponse_v0
from aiokafka.protocol.metadata import MetadataResponse_v1
from aiokafka.protocol.produce import ProduceRequest_v7, ProduceResponse_v7
from aiokafka.protocol.transaction import InitProducerIdResponse_v0

from tests.realtime import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

HOST = "127.0.0.1"
PRODUCE, METADATA, API_VERSIONS, INIT_PRODUCER_ID = 0, 3, 18, 22
# Each API with its least and highest version.
_VERSIONS = [(PRODUCE, 0, 13), (METADATA, 0, 1), (API_VERSIONS, 0, 0), (INIT_PRODUCER_ID, 0, 0)]
TASK = "a connection to a scripted Kafka"


def _open() -> asyncio.Event:
    gate = asyncio.Event()
    gate.set()
    return gate


@dataclass
class ScriptedKafka:
    """The cluster; clear a node's gate to hold something back, and set it to go on."""

    leaders: dict[int, int]
    # Before the answers to a connection's first request, for metadata and to a batch, and before reading on.
    greeting: dict[int, asyncio.Event] = field(default_factory=lambda: defaultdict(_open))
    describing: dict[int, asyncio.Event] = field(default_factory=lambda: defaultdict(_open))
    reading: dict[int, asyncio.Event] = field(default_factory=lambda: defaultdict(_open))
    answering: dict[int, asyncio.Event] = field(default_factory=lambda: defaultdict(_open))
    # What is answered to a batch: 0, or an error code.
    verdict: int = 0
    # Node and partitions of every produce request that arrived whole.
    produced: list[tuple[int, list[int]]] = field(default_factory=list)
    # Connections that wait for their greeting.
    ungreeted: int = 0
    connections: set[tuple[int, asyncio.StreamWriter]] = field(default_factory=set)
    _ports: dict[int, int] = field(default_factory=dict)

    @property
    def bootstrap(self) -> str:
        """`host:port` of a node."""
        return f"{HOST}:{next(iter(self._ports.values()))}"

    def reset(self, node: int) -> None:
        """End a node's connections."""
        for at, writer in list(self.connections):
            if at == node:
                writer.transport.abort()

    async def serve(self, node: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one connection until it ends."""
        task = asyncio.current_task()
        assert task is not None
        task.set_name(TASK)
        self.connections.add((node, writer))
        try:
            while True:
                await self.reading[node].wait()
                (size,) = struct.unpack(">i", await reader.readexactly(4))
                request = await reader.readexactly(size)
                answer = await self._answer(node, request)
                writer.write(struct.pack(">i", len(answer) + 4) + request[4:8] + answer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self.connections.discard((node, writer))
            writer.close()

    async def _answer(self, node: int, request: bytes) -> bytes:
        (api,) = struct.unpack_from(">h", request)
        answer: bytes
        if api == API_VERSIONS:
            self.ungreeted += 1
            try:
                await self.greeting[node].wait()
            finally:
                self.ungreeted -= 1
            answer = ApiVersionResponse_v0(0, _VERSIONS).encode()
        elif api == METADATA:
            await self.describing[node].wait()
            nodes = [(each, HOST, port, None) for each, port in self._ports.items()]
            led = [(0, partition, leader, [1], [1]) for partition, leader in self.leaders.items()]
            answer = MetadataResponse_v1(nodes, next(iter(self._ports)), [(0, "t", False, led)]).encode()
        elif api == INIT_PRODUCER_ID:
            answer = InitProducerIdResponse_v0(0, 0, 7, 0).encode()
        else:
            assert api == PRODUCE
            (client_id,) = struct.unpack_from(">h", request, 8)
            ((_, batches),) = ProduceRequest_v7.decode(request[10 + client_id :]).topics
            partitions = [partition for partition, _ in batches]
            self.produced.append((node, partitions))
            await self.answering[node].wait()
            answer = ProduceResponse_v7([("t", [(each, self.verdict, 0, -1, 0) for each in partitions])], 0).encode()
        return answer


@asynccontextmanager
async def scripted_kafka(leaders: dict[int, int]) -> AsyncIterator[ScriptedKafka]:
    """A cluster of all these leaders; at the end no connection to it may be open."""
    kafka = ScriptedKafka(leaders)
    servers = []
    for node in sorted(set(leaders.values())):

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, node: int = node) -> None:
            await kafka.serve(node, reader, writer)

        server = await asyncio.start_server(serve, HOST, 0)
        servers.append(server)
        kafka._ports[node] = server.sockets[0].getsockname()[1]
    try:
        yield kafka
        await until(lambda: not kafka.connections)
    finally:
        for node, writer in list(kafka.connections):
            kafka.reading[node].set()
            kafka.greeting[node].set()
            kafka.describing[node].set()
            kafka.answering[node].set()
            writer.transport.abort()
        for server in servers:
            server.close()
            await server.wait_closed()
