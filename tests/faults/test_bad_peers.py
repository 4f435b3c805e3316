"""MQTT brokers that break the protocol, against the whole service.

Whatever a broker sends: the mapping says what is wrong or goes on, the service lives, no message is lost that the
broker still has, and a mapping next to it does not notice.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio

from tests.brokers import MqttBroker
from tests.fakebroker import (
    CONNECT,
    DISCONNECT,
    PINGREQ,
    PINGRESP,
    PUBACK,
    SUBSCRIBE,
    Dialect,
    FakeBroker,
    Peer,
    client_id,
    fake_broker,
    packet,
)
from tests.forwarding import act, check_books, quiet
from tests.service import Service

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from tests.brokers import KafkaCluster

pytestmark = pytest.mark.asyncio(loop_scope="module")

TIMEOUT = 20.0
HEALTHY = "healthy"
SAME_MALFORMED_PACKETS = 5


@dataclass
class Session:
    """What this side knows of one client's session: its connections in turn, and what the client acknowledged."""

    dialect: Dialect
    connections: asyncio.Queue[Peer] = field(default_factory=asyncio.Queue)
    acknowledged: list[int] = field(default_factory=list)
    subscribed: asyncio.Event = field(default_factory=asyncio.Event)
    serving: list[asyncio.Task[None]] = field(default_factory=list)

    async def connection(self) -> Peer:
        """The client's next connection, its CONNECT read and not answered."""
        async with asyncio.timeout(TIMEOUT):
            return await self.connections.get()

    async def accept(self, *, session_present: bool = False) -> Peer:
        """Accept the client's next connection, and serve it from now on."""
        peer = await self.connection()
        peer.write(self.dialect.connack(session_present=session_present))
        self.serve(peer)
        return peer

    async def accept_and_subscribe(self) -> Peer:
        """Accept the first connection, and wait until the client has subscribed."""
        peer = await self.accept()
        async with asyncio.timeout(TIMEOUT):
            await self.subscribed.wait()
        return peer

    def serve(self, peer: Peer) -> None:
        """Answer what the client asks, and note its acknowledgements, until it closes."""
        self.serving.append(asyncio.create_task(self._serve(peer)))

    async def _serve(self, peer: Peer) -> None:
        try:
            while True:
                asked = await peer.packet()
                if asked.kind == SUBSCRIBE:
                    peer.write(self.dialect.suback(asked.packet_id, 1))
                    self.subscribed.set()
                elif asked.kind == PUBACK:
                    self.acknowledged.append(asked.packet_id)
                elif asked.kind == PINGREQ:
                    peer.write(PINGRESP)
                elif asked.kind == DISCONNECT:
                    peer.close()
        except (ConnectionError, TimeoutError):
            peer.close()

    async def acks(self, *packet_ids: int) -> None:
        """Wait until the client has acknowledged these, and nothing else, in this order."""
        async with asyncio.timeout(TIMEOUT):
            while len(self.acknowledged) < len(packet_ids):
                await asyncio.sleep(0.01)
        assert self.acknowledged == list(packet_ids)


@dataclass
class World:
    """The service between a Kafka and a broker that is played; one mapping in it is treated well all the time."""

    service: Service
    kafka: KafkaCluster
    dialect: Dialect
    sessions: dict[str, Session]
    healthy: Peer
    sent: int = 0

    def session(self, name: str) -> Session:
        """The session of this mapping."""
        return self.sessions[f"svc-{name}"]

    @asynccontextmanager
    async def mapping(self, name: str, topic: str, **options: Any) -> AsyncIterator[Session]:
        """Create a mapping; the healthy one forwards before and after, and notices nothing."""
        document = {"name": name, "mqtt": {"topic": "bad/#"}, "kafka": {"topic": topic}, **options}
        await self.check_healthy()
        response = await self.service.api.post("/api/v1/mappings", json=document)
        assert response.status_code == 201, response.text
        yield self.session(name)
        check_books(await self.service.status(name))
        await self.check_healthy()
        await act(self.service, "pause", name)

    async def check_healthy(self) -> None:
        """What is sent to the healthy mapping is acknowledged, on the connection it has had from the beginning."""
        session = self.session(HEALTHY)
        self.sent += 1
        self.healthy.write(self.dialect.publish("good/1", b"%d" % self.sent, packet_id=self.sent))
        await session.acks(*range(1, self.sent + 1))
        status = await self.service.status(HEALTHY)
        assert (status["state"], status["counters"]["reconnects"]) == ("running", 0)

    async def retrying(self, name: str, reason: str) -> str:
        """Wait until the mapping is RETRYING for this reason; the reason's text."""
        status = await self.service.wait_state(name, "retrying")
        text: str = status["reason"]
        assert text.startswith(f"{reason}: "), text
        return text

    async def values(self, topic: str, count: int) -> list[bytes | None]:
        """What Kafka holds, once it is as many as that."""
        return [record.value for record in await self.kafka.wait_for_records(topic, count, timeout=TIMEOUT)]


@pytest.fixture(scope="module", params=["5", "3.1.1"])
def protocol(request: pytest.FixtureRequest) -> str:
    """Return the version of MQTT that the service speaks."""
    version: str = request.param
    return version


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(tmp_path_factory: pytest.TempPathFactory, kafka: KafkaCluster, protocol: Any) -> AsyncIterator[World]:
    """Run the service, for all tests of one version."""
    dialect = Dialect(protocol)
    sessions: dict[str, Session] = defaultdict(lambda: Session(dialect))
    topic = await kafka.create_topic(f"healthy-{tmp_path_factory.mktemp('bad-peers').name}-{protocol}")
    forwarding = {"name": HEALTHY, "mqtt": {"topic": "good/#"}, "kafka": {"topic": topic}}
    async with fake_broker() as broker:
        greeting = asyncio.create_task(greet(broker, sessions))
        service = Service(
            tmp_path_factory.mktemp("service"),
            mqtt_broker=MqttBroker(broker.host, broker.port),
            kafka_broker=kafka,
            forwarding=[forwarding],
            client_id="svc",
            mqtt={"protocol": protocol, "keep_alive": "5s"},  # well within the patience of a Peer
        )
        async with service:
            await service.wait_ready()
            healthy = await sessions[f"svc-{HEALTHY}"].accept_and_subscribe()
            world = World(service, kafka, dialect, sessions, healthy)
            yield world
            for session in sessions.values():
                while not session.connections.empty():
                    (await session.connection()).close()
        greeting.cancel()
        log = service.log_path.read_text()
        assert "crashed" not in log, service.log_path
        assert "Exception in callback" not in log, service.log_path
        assert [record.value for record in await kafka.read_all(topic)] == [b"%d" % n for n in range(1, world.sent + 1)]
    await kafka.delete_topic(topic)


async def greet(broker: FakeBroker, sessions: dict[str, Session]) -> None:
    """Read the CONNECT of every connection, and queue it with its session."""
    while True:
        peer = await broker.next_peer()
        connect = await peer.expect(CONNECT)
        sessions[client_id(connect)].connections.put_nowait(peer)


def qos_3(dialect: Dialect) -> bytes:
    sound = dialect.publish("bad/1", b"x", packet_id=2)
    return bytes([sound[0] | 0x06]) + sound[1:]


MALFORMED: dict[str, Callable[[Dialect], bytes]] = {
    "QoS 3": qos_3,
    "a topic that is not UTF-8": lambda dialect: dialect.publish(b"bad/\xff\xfe", b"x", packet_id=2),
    "a length of five bytes": lambda _: b"\x32\xff\xff\xff\xff\x01",
    "a length that is too short for its topic": lambda _: packet(0x32, b"\x00\x99bad"),
    "packet id 0": lambda dialect: dialect.publish("bad/1", b"x", packet_id=0),
}


@pytest.mark.parametrize("what", MALFORMED)
async def test_a_malformed_packet_is_a_reason_and_costs_no_other_message(
    world: World, kafka_topic: Callable[..., Awaitable[str]], unique: str, what: str
) -> None:
    topic, bad, publish = await kafka_topic("bad"), MALFORMED[what](world.dialect), world.dialect.publish
    async with world.mapping(unique, topic) as session:
        peer = await session.accept_and_subscribe()
        peer.write(publish("bad/1", b"before", packet_id=1), bad, publish("bad/1", b"after", packet_id=3))
        assert bad[:4].hex() in await world.retrying(unique, "mqtt_malformed_packet")
        peer = await session.accept(session_present=True)
        again = [] if session.acknowledged else [publish("bad/1", b"before", packet_id=1, duplicate=True)]
        peer.write(*again, publish("bad/1", b"after", packet_id=3, duplicate=True))
        await quiet(world.service, unique)
        assert list(dict.fromkeys(await world.values(topic, 2))) == [b"before", b"after"]
        await session.acks(1, 3)


async def test_the_same_malformed_packet_for_ever_fails_and_a_resume_goes_on(
    world: World, kafka_topic: Callable[..., Awaitable[str]], unique: str
) -> None:
    topic, bad, publish = await kafka_topic("bad"), qos_3(world.dialect), world.dialect.publish
    async with world.mapping(unique, topic) as session:
        peer = await session.accept_and_subscribe()
        peer.write(bad, publish("bad/1", b"behind", packet_id=3))
        for _ in range(SAME_MALFORMED_PACKETS - 1):
            peer = await session.accept(session_present=True)
            peer.write(bad, publish("bad/1", b"behind", packet_id=3, duplicate=True))
        status = await world.service.wait_state(unique, "failed")
        assert status["reason"].startswith("mqtt_malformed_packet: ")
        assert "5 times in a row" in status["reason"]
        assert session.acknowledged == []
        assert await world.kafka.end_offsets(topic) == {0: 0}
        await act(world.service, "resume", unique)
        peer = await session.accept(session_present=True)
        peer.write(publish("bad/1", b"behind", packet_id=3, duplicate=True))
        await world.service.wait_state(unique)
        assert await world.values(topic, 1) == [b"behind"]
        await session.acks(3)


async def test_different_malformed_packets_are_retried_for_ever(
    world: World, kafka_topic: Callable[..., Awaitable[str]], unique: str
) -> None:
    topic = await kafka_topic("bad")
    async with world.mapping(unique, topic) as session:
        peer = await session.accept_and_subscribe()
        for n in range(SAME_MALFORMED_PACKETS + 1):
            peer.write(packet(0x32, b"\x00\x99%d" % n))
            peer = await session.accept(session_present=True)
        peer.write(world.dialect.publish("bad/1", b"at last"))
        await world.service.wait_state(unique)
        assert await world.values(topic, 1) == [b"at last"]


async def test_a_publish_before_connack_breaks_the_protocol_and_is_not_taken(
    world: World, kafka_topic: Callable[..., Awaitable[str]], unique: str
) -> None:
    topic, publish = await kafka_topic("bad"), world.dialect.publish
    async with world.mapping(unique, topic) as session:
        peer = await session.connection()
        peer.write(publish("bad/1", b"too early"))
        assert "before CONNACK" in await world.retrying(unique, "mqtt_protocol")
        peer = await session.accept()
        peer.write(publish("bad/1", b"in time"))
        await session.acks(1)
        assert await world.values(topic, 1) == [b"in time"]


async def test_a_topic_alias_nobody_allowed_breaks_the_protocol_and_is_not_taken(
    world: World, kafka_topic: Callable[..., Awaitable[str]], unique: str, protocol: str
) -> None:
    if protocol != "5":
        pytest.skip("topic aliases came with MQTT 5")
    topic, publish = await kafka_topic("bad"), world.dialect.publish
    async with world.mapping(unique, topic) as session:
        peer = await session.accept_and_subscribe()
        without_topic = packet(0x32, b"\x00\x00\x00\x02\x03\x23\x00\x07x")
        peer.write(publish("bad/1", b"before", packet_id=1), without_topic, publish("bad/1", b"after", packet_id=3))
        assert "topic alias" in await world.retrying(unique, "mqtt_protocol")
        peer = await session.accept(session_present=True)
        again = [] if session.acknowledged else [publish("bad/1", b"before", packet_id=1, duplicate=True)]
        peer.write(*again, publish("bad/1", b"after", packet_id=3, duplicate=True))
        await quiet(world.service, unique)
        assert list(dict.fromkeys(await world.values(topic, 2))) == [b"before", b"after"]
        await session.acks(1, 3)


async def test_more_than_the_receive_maximum_is_taken_and_acknowledged_in_order(
    world: World, kafka_topic: Callable[..., Awaitable[str]], unique: str
) -> None:
    topic, count = await kafka_topic("bad"), 500
    source = {"topic": "bad/#", "receive_maximum": 5}
    async with world.mapping(unique, topic, mqtt=source) as session:
        peer = await session.accept_and_subscribe()
        peer.write(*(world.dialect.publish("bad/1", b"%d" % n, packet_id=n) for n in range(1, count + 1)))
        await session.acks(*range(1, count + 1))
        assert await world.values(topic, count) == [b"%d" % n for n in range(1, count + 1)]
        assert (await world.service.status(unique))["counters"]["reconnects"] == 0


async def test_two_messages_under_one_packet_id_are_both_forwarded(
    world: World, kafka_topic: Callable[..., Awaitable[str]], unique: str
) -> None:
    topic, publish = await kafka_topic("bad"), world.dialect.publish
    async with world.mapping(unique, topic) as session:
        peer = await session.accept_and_subscribe()
        peer.write(publish("bad/1", b"same", packet_id=7), publish("bad/1", b"same", packet_id=7))
        await session.acks(7, 7)
        assert await world.values(topic, 2) == [b"same", b"same"]


async def test_a_message_larger_than_the_budget_and_kafkas_limit_goes_the_way_of_poison(
    world: World, kafka_topic: Callable[..., Awaitable[str]], unique: str
) -> None:
    topic, dead, publish = await kafka_topic("bad"), await kafka_topic("dead"), world.dialect.publish
    options = {"on_poison": "dead_letter", "dead_letter_topic": dead, "buffer_bytes": 1024}
    async with world.mapping(unique, topic, **options) as session:
        peer = await session.accept_and_subscribe()
        too_large = bytes(30_000_000)
        peer.write(publish("bad/1", b"before", packet_id=1), publish("bad/1", too_large, packet_id=2))
        status = await world.service.wait_state(unique, "failed")
        assert status["reason"].startswith("dead_letter_refused: ")
        assert session.acknowledged == [1]
        patch = {"on_poison": "drop", "dead_letter_topic": None}
        response = await world.service.api.patch(f"/api/v1/mappings/{unique}", json=patch)
        assert response.status_code == 200, response.text
        peer = await session.accept(session_present=True)
        peer.write(publish("bad/1", too_large, packet_id=2, duplicate=True), publish("bad/1", b"after", packet_id=3))
        await session.acks(1, 2, 3)
        assert await world.values(topic, 2) == [b"before", b"after"]
        assert (await world.service.status(unique))["counters"]["dropped"] == {"message_too_large": 1}


async def test_a_suback_without_an_answer_for_the_filter_breaks_the_protocol(
    world: World, kafka_topic: Callable[..., Awaitable[str]], unique: str
) -> None:
    topic = await kafka_topic("bad")
    async with world.mapping(unique, topic) as session:
        peer = await session.connection()
        peer.write(world.dialect.connack())
        asked = await peer.expect(SUBSCRIBE)
        peer.write(world.dialect.suback(asked.packet_id))
        await world.service.wait_state(unique, "retrying")
        peer = await session.accept(session_present=True)
        async with asyncio.timeout(TIMEOUT):
            await session.subscribed.wait()
        peer.write(world.dialect.publish("bad/1", b"in time"))
        await session.acks(1)
        assert await world.values(topic, 1) == [b"in time"]
