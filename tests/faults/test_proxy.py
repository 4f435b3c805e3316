"""The proxy and its tap tested: a network fault that does nothing, or a tap that misses something, proves nothing."""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Literal

import pytest

from tests.devices import connected, publish, subscriber
from tests.fakebroker import Dialect
from tests.faults import packets
from tests.faults.history import Ack, Delivery, Ended
from tests.faults.load import Load, identify
from tests.faults.packets import Framer
from tests.faults.proxy import PARTITION, Direction, Proxy
from tests.faults.tap import WireTap
from tests.realtime import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from tests.brokers import Mosquitto, MqttBroker
    from tests.faults.history import WireEvent

SOON = 5.0


class EchoServer:
    """Echoes what it hears and remembers how its connections ended."""

    def __init__(self) -> None:
        self.port = 0
        self.heard = bytearray()
        self.reads = 0
        self.endings: list[str] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65_536):
                self.heard += data
                self.reads += 1
                writer.write(data)
            self.endings.append("closed")
        except ConnectionResetError:
            self.endings.append("reset")
        finally:
            writer.close()


@asynccontextmanager
async def echo() -> AsyncIterator[tuple[Proxy, EchoServer]]:
    echoes = EchoServer()
    server = await asyncio.start_server(echoes.serve, "127.0.0.1", 0)
    echoes.port = server.sockets[0].getsockname()[1]
    async with server, Proxy(lambda: ("127.0.0.1", echoes.port)) as proxy:
        yield proxy, echoes


class Client:
    """What the service is to a real broker."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def echoed(self, data: bytes, *, within: float = SOON) -> bool:
        self.writer.write(data)
        with suppress(TimeoutError):
            async with asyncio.timeout(within):
                return await self.reader.readexactly(len(data)) == data
        return False

    async def ending(self) -> str:
        async with asyncio.timeout(SOON):
            try:
                return "closed" if not await self.reader.read() else "more"
            except ConnectionResetError:
                return "reset"


@asynccontextmanager
async def client(proxy: Proxy) -> AsyncIterator[Client]:
    reader, writer = await asyncio.open_connection(proxy.host, proxy.port)
    try:
        yield Client(reader, writer)
    finally:
        writer.close()


# --- conditions -------------------------------------------------------------------------------------------------------


async def test_bytes_pass_both_ways_and_an_end_is_passed_on() -> None:
    async with echo() as (proxy, server):
        async with client(proxy) as one:
            assert await one.echoed(bytes(range(256)) * 4_000)
        await until(lambda: server.endings == ["closed"])
        await until(lambda: not proxy.links)


async def test_a_partition_stops_both_directions_and_its_end_loses_nothing() -> None:
    async with echo() as (proxy, server), client(proxy) as one:
        assert await one.echoed(b"before")
        proxy.change(PARTITION)
        assert not await one.echoed(b"during", within=0.2)
        async with client(proxy) as new:
            assert not await new.echoed(b"void", within=0.2)
            assert server.heard == b"before"
            proxy.change()
            async with asyncio.timeout(SOON):
                assert await one.reader.readexactly(6) == b"during"
                assert await new.reader.readexactly(4) == b"void"


async def test_who_gave_up_during_a_partition_is_not_connected_after_it() -> None:
    async with echo() as (proxy, server):
        proxy.change(PARTITION)
        async with client(proxy) as gone:
            assert not await gone.echoed(b"void", within=0.1)
        await until(lambda: len(proxy.links) == 1)
        (link,) = proxy.links
        await until(lambda: link.left_by_client)  # on a busy machine the change would overtake it
        proxy.change()
        await until(lambda: not proxy.links)
        assert not server.heard


async def test_one_direction_alone_can_be_blocked() -> None:
    async with echo() as (proxy, server), client(proxy) as one:
        assert await one.echoed(b"before")
        proxy.change(blocked=frozenset({Direction.DOWN}))
        assert not await one.echoed(b"heard", within=0.2)
        assert server.heard == b"beforeheard"


async def test_latency_delays_without_limiting_what_is_on_its_way() -> None:
    async with echo() as (proxy, _), client(proxy) as one:
        proxy.change(latency=0.2)
        started = time.monotonic()
        assert await one.echoed(b"x")
        assert time.monotonic() - started >= 0.4
        for _ in range(5):
            one.writer.write(b"y")
            await asyncio.sleep(0.01)
        started = time.monotonic()
        async with asyncio.timeout(SOON):
            await one.reader.readexactly(5)
        assert time.monotonic() - started < 1.5, "one after the other they would take 2 s"


async def test_bytes_come_one_at_a_time() -> None:
    async with echo() as (proxy, server), client(proxy) as one:
        proxy.change(bytewise=True)
        assert await one.echoed(b"z" * 500)
        assert server.reads > 100


async def test_a_slow_reader_is_felt() -> None:
    async with echo() as (proxy, _), client(proxy) as one:
        proxy.change(rate=20_000.0)
        started = time.monotonic()
        assert await one.echoed(b"s" * 10_000)
        assert time.monotonic() - started > 0.4
        proxy.change()
        assert await one.echoed(b"s" * 1_000_000)


async def test_a_reset_reaches_both_ends() -> None:
    async with echo() as (proxy, server), client(proxy) as one:
        assert await one.echoed(b"x")
        await proxy.reset()
        assert await one.ending() == "reset"
        await until(lambda: server.endings == ["reset"])


@pytest.mark.parametrize("kept", list(Direction))
async def test_a_half_open_connection_is_known_to_one_end_only(kept: Direction) -> None:
    async with echo() as (proxy, server), client(proxy) as one:
        assert await one.echoed(b"x")
        await proxy.half_open(kept)
        if kept is Direction.DOWN:
            await until(lambda: server.endings == ["reset"])
            assert not await one.echoed(b"into the void", within=0.2)
        else:
            assert await one.ending() == "reset"
            assert server.endings == []
        async with client(proxy) as new:
            assert await new.echoed(b"new ones are fine")
        proxy.let_go()
        if kept is Direction.DOWN:
            assert await one.ending() == "reset"
        else:
            await until(lambda: "reset" in server.endings)


async def test_a_proxy_that_refuses_is_back_on_its_port() -> None:
    async with echo() as (proxy, _):
        async with client(proxy) as one:
            assert await one.echoed(b"x")
            await proxy.refuse()
            assert await one.ending() == "reset"
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection(proxy.host, proxy.port)
        await proxy.listen()
        async with client(proxy) as one:
            assert await one.echoed(b"x")


async def test_a_server_that_is_away_resets() -> None:
    async with Proxy(lambda: ("127.0.0.1", 1)) as proxy, client(proxy) as one:
        assert await one.ending() in {"reset", "closed"}
        await until(lambda: not proxy.links)


# --- the tap ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 3, 1_000])
def test_packets_are_cut_wherever_the_bytes_are(size: int) -> None:
    stream = bytes([0xC0, 0, 0x30, 0xC8, 1]) + b"p" * 200 + bytes([0xD0, 0])
    framer, found = Framer(), []
    for at in range(0, len(stream), size):
        found += framer.feed(stream[at : at + size])
    assert [(packets.kind(each), len(each)) for each in found] == [(12, 2), (3, 203), (13, 2)]


@pytest.mark.parametrize(("protocol", "level"), [("5", 5), ("3.1.1", 4)])
def test_messages_of_both_versions_are_understood(protocol: Literal["5", "3.1.1"], level: int) -> None:
    speak = Dialect(protocol)
    sent = speak.publish("a/b", b"x" * 200, qos=2, packet_id=777, duplicate=True)
    assert packets.parse_publish(sent, level) == packets.Publish("a/b", b"x" * 200, 2, True, 777)
    assert packets.parse_publish(speak.publish("a", qos=0), level) == packets.Publish("a", b"", 0, False, 0)


@asynccontextmanager
async def tapped(broker: MqttBroker | Mosquitto, client_id: str) -> AsyncIterator[tuple[Proxy, WireTap]]:
    tap = WireTap({client_id: "5/qos1"})
    async with Proxy(lambda: (broker.host, broker.port), tap=tap.on) as proxy:
        yield proxy, tap


def ours(events: list[WireEvent], kind: type[WireEvent]) -> list[WireEvent]:
    return [event for event in events if isinstance(event, kind)]


@pytest.mark.parametrize("qos", [1, 2])
async def test_deliveries_and_their_acknowledgements_are_recorded(mosquitto: MqttBroker, unique: str, qos: int) -> None:
    load = Load(mosquitto, unique, topics=5)
    async with (
        tapped(mosquitto, unique) as (proxy, tap),
        subscriber(proxy.host, proxy.port, f"{unique}/#", qos=qos, client_id=unique) as sub,
    ):
        async with load.running():
            await sub.wait(50)
        received = await sub.wait(len(load.publications))
        await until(lambda: len(ours(tap.events, Ack)) == len(received))
        assert tap.latest_acknowledged["5/qos1"] == load.publications[-1].id
        assert tap.held("5/qos1") == 0
    deliveries, acks = ours(tap.events, Delivery), ours(tap.events, Ack)
    assert [(each.packet_id, each.message) for each in deliveries if isinstance(each, Delivery)] == [
        (each.packet_id, identify(each.payload)[0]) for each in received
    ]
    assert [each.packet_id for each in acks if isinstance(each, Ack)] == [each.packet_id for each in received]
    assert all(isinstance(each, Ack) and each.relayed_at and each.relayed_at >= each.at for each in acks)
    assert {each.kind for each in acks if isinstance(each, Ack)} == {"PUBACK" if qos == 1 else "PUBREC"}
    assert isinstance(tap.events[-1], Ended)
    assert all(each.accepted_at and each.attempts == 1 for each in load.publications)


async def test_acknowledgements_that_are_held_back_are_seen_and_do_not_arrive(
    mosquitto: MqttBroker, unique: str
) -> None:
    async with tapped(mosquitto, unique) as (proxy, tap):
        async with subscriber(
            proxy.host, proxy.port, f"{unique}/#", client_id=unique, session_expiry_interval=60
        ) as sub:
            proxy.change(blocked=frozenset({Direction.UP}))
            async with Load(mosquitto, unique, topics=5).running():
                first = await sub.wait(20)
            await until(lambda: tap.held("5/qos1") >= 20)
            await proxy.reset()
            proxy.change()
        async with subscriber(proxy.host, proxy.port, f"{unique}/#", client_id=unique, clean_start=False) as sub:
            again = await sub.wait(20)
    assert [each.payload for each in again[:20]] == [each.payload for each in first[:20]]
    assert all(each.duplicate for each in again[:20])


async def test_a_connection_is_refused_in_the_brokers_place(mosquitto: MqttBroker, unique: str) -> None:
    async with tapped(mosquitto, unique) as (proxy, tap):
        tap.refusals = {5: 0x87}
        with pytest.raises(ConnectionError, match="CONNACK 135"):
            async with connected(proxy.host, proxy.port, unique):
                pass
        assert tap.refused == 1
        tap.refusals = {}
        async with connected(proxy.host, proxy.port, unique):
            pass


async def test_a_disconnect_is_said_in_the_brokers_place_and_the_session_stays(
    mosquitto: MqttBroker, unique: str
) -> None:
    async with tapped(mosquitto, unique) as (proxy, tap):
        async with connected(proxy.host, proxy.port, unique, session_expiry_interval=60) as connection:
            tap.disconnect(0x8B)
            await asyncio.wait_for(connection.closed, SOON)
            assert connection.reason.endswith("DISCONNECT: 139")
        async with connected(proxy.host, proxy.port, unique, clean_start=False) as connection:
            assert connection.connack.result().session_present


async def test_a_load_outlives_its_broker_and_says_what_was_written_twice(
    own_mosquitto: Callable[..., Mosquitto], unique: str
) -> None:
    broker = own_mosquitto()
    load = Load(broker, unique, topics=5)
    async with load.running():
        await until(lambda: len(load.publications) > 50)
        await asyncio.to_thread(broker.restart, kill=True)
        before = len(load.publications)
        await until(lambda: len(load.publications) > before + 50)
    assert all(each.accepted_at for each in load.publications)
    assert load.find(load.publications[37].id) is load.publications[37]
    assert [each.seq for each in load.publications if each.topic == f"{unique}/3"] == list(
        range(len([each for each in load.publications if each.topic == f"{unique}/3"]))
    )
    await publish(broker.host, broker.port, [("x", b"the broker lives")])
