"""What every MQTT connection owes the port, for both protocol versions; and below, what only MQTT 5 has.

What only 3.1.1 has is in test_mqtt_311.py.
"""

from __future__ import annotations

import asyncio
import functools
import gc
import socket
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any

import mqtt5
import pytest
import uvloop

from server.core.connections import MqttConnection
from server.core.subscription import Subscription
from server.mqtt import connection as base
from server.mqtt import unsent, v5, v311, wire
from server.mqtt.port import (
    MESSAGE_OVERHEAD_BYTES,
    ConnectionEndedError,
    SessionRequest,
    SubscriptionRefusedError,
)
from tests.brokers import MqttBroker
from tests.devices import publish, session_exists
from tests.fakebroker import (
    CONNECT,
    DISCONNECT,
    PINGREQ,
    PINGRESP,
    PUBACK,
    PUBCOMP,
    PUBREC,
    SUBSCRIBE,
    UNSUBSCRIBE,
    Dialect,
    FakeBroker,
    Peer,
    fake_broker,
    packet,
    pubrel,
)
from tests.virtualtime import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    from server.mqtt.port import Connection, Connector, Message
    from tests.brokers import Mosquitto

TIMEOUT = 20.0
_OF_SESSION = {"client_id", "session_expiry"}
MODULES = {"5": v5, "3.1.1": v311}
BAD_UTF8 = b"a/\xff\xfe"
# The mqtt5 codec panics on invalid UTF-8, and its panic says so in this way too, where nobody can catch it.
codec_panics = pytest.mark.filterwarnings("ignore:Exception ignored in. None:pytest.PytestUnraisableExceptionWarning")


class Collector:
    """A receiver that keeps everything; with `acknowledge` it answers the first that many messages at once."""

    def __init__(self, acknowledge: int = 0) -> None:
        self.connection: Connection | None = None
        self.messages: list[Message] = []
        self.reads: list[tuple[int, int]] = []
        self.acknowledged: list[Message] = []
        self.discards: list[Message] = []
        self.on_the_way: list[int] = []
        self.whole_reads: list[int] = []  # messages, after each
        self._to_acknowledge = acknowledge
        self._changed = asyncio.Event()

    @property
    def payloads(self) -> list[bytes]:
        return [message.payload for message in self.messages]

    def acknowledge_from_now(self, count: int) -> None:
        """Answer the next messages at once."""
        self._to_acknowledge = len(self.acknowledged) + count

    def connected(self, connection: Connection) -> None:
        assert not self.messages
        self.connection = connection

    def received(self, messages: Sequence[Message], size: int) -> None:
        assert self.connection is not None
        self.messages += messages
        self.reads.append((len(messages), size))
        due = messages[: self._to_acknowledge - len(self.acknowledged)]
        if due:
            self.connection.acknowledge(due)
            self.acknowledged += due
        self._changed.set()

    def all_received(self) -> None:
        self.whole_reads.append(len(self.messages))

    def discarded(self, messages: Sequence[Message]) -> None:
        self.discards += messages

    def receiving(self, size: int) -> None:
        self.on_the_way.append(size)

    async def wait(self, count: int) -> list[Message]:
        try:
            async with asyncio.timeout(TIMEOUT):
                while len(self.messages) < count:
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            raise AssertionError(f"{len(self.messages)} of {count} messages") from None
        return self.messages


def request(broker: MqttBroker | FakeBroker | Mosquitto, client_id: str = "me", **options: Any) -> SessionRequest:
    """Ask for a lasting session, unless `options` say else; those of the broker's settings go there."""
    of_broker = {name: options.pop(name) for name in MqttConnection.model_fields.keys() & options.keys() - _OF_SESSION}
    carried = broker.mqtt if isinstance(broker, FakeBroker) else {}
    connection = MqttConnection.model_validate(
        {"host": broker.host, "port": broker.port, "keep_alive": 60, **carried, **of_broker}
    )
    wanted: dict[str, Any] = {"clean_start": False, "session_expiry": 600, "receive_maximum": 65_534, **options}
    return SessionRequest(broker=connection, client_id=client_id, **wanted)


class Version:
    """One protocol version under test; `kind` is what carries it to a broker that the test plays."""

    def __init__(self, protocol: Any, kind: str = "tcp") -> None:
        self.protocol = protocol
        self.kind = kind
        self.module = MODULES[protocol]
        self.speak = Dialect(protocol)
        self.connector: Connector = self.module.Connector()

    @asynccontextmanager
    async def connected(
        self, to: SessionRequest, receiver: Collector | None = None
    ) -> AsyncIterator[tuple[Connection, Collector]]:
        collector = receiver or Collector()
        connection = await self.connector.connect(to, collector)
        try:
            yield connection, collector
        finally:
            connection.abort()
            await ended(connection)

    @asynccontextmanager
    async def faked(
        self, *then: bytes, session_present: bool = False, **options: Any
    ) -> AsyncIterator[tuple[Connection, Collector, Peer]]:
        """A connection to a broker the test plays; `then` comes in one segment with CONNACK."""
        async with fake_broker(self.kind) as broker:
            peer, connecting, collector = await self.connecting(broker, **options)
            peer.write(self.speak.connack(session_present=session_present), *then)
            connection = await connecting
            try:
                yield connection, collector, peer
            finally:
                connection.abort()
                await ended(connection)

    async def connecting(self, broker: FakeBroker, **options: Any) -> tuple[Peer, asyncio.Task[Connection], Collector]:
        collector = Collector()
        connecting = asyncio.ensure_future(self.connector.connect(request(broker, **options), collector))
        peer = await broker.peer()
        assert (await peer.packet()).kind == CONNECT
        return peer, connecting, collector

    def ticks(self) -> list[float]:
        """When its connections are called next for their keep alive, by the loop's clock."""
        return sorted(vars(vars(self.connector)["_ticks"])["_ticks"])

    async def refusal(self, *answer: bytes, **options: Any) -> Any:
        """How connecting ends when the broker answers this and closes."""
        async with fake_broker(self.kind) as broker:
            peer, connecting, _ = await self.connecting(broker, **options)
            peer.write(*answer)
            peer.close()
            with pytest.raises(ConnectionEndedError) as raised:
                await connecting
            return raised.value.ended


@pytest.fixture(params=["5", "3.1.1"])
def version(request: pytest.FixtureRequest) -> Version:
    return Version(request.param)


@pytest.fixture
def five() -> Version:
    return Version("5")


async def ended(connection: Connection) -> Any:
    async with asyncio.timeout(TIMEOUT):
        return await asyncio.shield(connection.ended)


def subscriptions(*filters: str, qos: int = 1) -> list[Subscription]:
    return [Subscription(each, qos) for each in filters]


def numbered(topic: str, numbers: range) -> list[tuple[str, bytes]]:
    return [(topic, b"%d" % n) for n in numbers]


# --- connecting -----------------------------------------------------------------------------------------------------


async def test_connect_tells_the_broker_who_and_for_how_long(version: Version) -> None:
    async with fake_broker() as broker:
        wanted = request(broker, "id", keep_alive=7, credentials={"username": "user", "password": "secret"})
        connecting = asyncio.ensure_future(version.connector.connect(wanted, Collector()))
        peer = await broker.peer()
        body = (await peer.packet()).body
        assert body[:7] == b"\x00\x04MQTT" + (b"\x05" if version.protocol == "5" else b"\x04")
        assert body[7] == 0b1100_0000  # user name and password, no will, and not clean
        assert int.from_bytes(body[8:10], "big") == 7
        assert body.endswith(b"\x00\x02id\x00\x04user\x00\x06secret")
        peer.write(version.speak.connack())
        (await connecting).abort()


@pytest.mark.parametrize(("clean_start", "client_id"), [(True, "id"), (False, "id"), (True, "")])
async def test_a_clean_start_is_asked_for(version: Version, clean_start: bool, client_id: str) -> None:
    async with fake_broker() as broker:
        wanted = request(broker, client_id, clean_start=clean_start)
        connecting = asyncio.ensure_future(version.connector.connect(wanted, Collector()))
        peer = await broker.peer()
        assert (await peer.packet()).body[7] == (0b10 if clean_start else 0)
        peer.write(version.speak.connack())
        (await connecting).abort()


async def test_a_session_is_present_when_it_was_there_before(
    version: Version, mosquitto: MqttBroker, unique: str
) -> None:
    for expected in (False, True):
        async with version.connected(request(mosquitto, unique)) as (connection, collector):
            assert collector.connection is connection
            assert connection.is_open
            assert connection.granted.session_present is expected
            assert connection.granted.protocol == version.protocol
            assert connection.granted.client_id == unique
            await connection.leave()
            assert not connection.is_open


async def test_a_session_ends_by_a_clean_start_without_expiry(
    version: Version, mosquitto: MqttBroker, unique: str
) -> None:
    async with version.connected(request(mosquitto, unique)) as (connection, _):
        await connection.leave()
    assert await session_exists(mosquitto.host, mosquitto.port, unique, version.protocol)
    async with version.connected(request(mosquitto, unique, clean_start=True, session_expiry=0)) as (connection, _):
        assert not connection.granted.session_present
        await connection.leave()
    assert not await session_exists(mosquitto.host, mosquitto.port, unique, version.protocol)


async def test_a_broker_that_closes_before_a_byte_is_silent(version: Version) -> None:
    refused = await version.refusal()
    assert refused.silent
    assert refused.reason.code == "mqtt_unanswered"
    assert "mqtt.tls" in refused.reason.detail


async def test_a_broker_that_closes_in_the_middle_of_connack_is_not_silent(version: Version) -> None:
    refused = await version.refusal(version.speak.connack()[:2])
    assert not refused.silent
    assert "another client" not in refused.reason.detail
    assert refused.reason.code == "mqtt_connection_lost"


async def test_a_broker_that_never_answers_is_a_timeout(version: Version, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "CONNECT_TIMEOUT_SECONDS", 0.2)
    async with fake_broker() as broker:
        peer, connecting, _ = await version.connecting(broker)
        with pytest.raises(ConnectionEndedError) as raised:
            await connecting
        assert raised.value.ended.reason.code == "mqtt_timeout"
        assert not raised.value.ended.silent
        await peer.closed_by_client()


async def test_a_port_nobody_listens_on_is_unreachable(version: Version) -> None:
    async with fake_broker() as broker:
        wanted = request(broker)
    with pytest.raises(ConnectionEndedError) as raised:
        await version.connector.connect(wanted, Collector())
    assert raised.value.ended.reason.code == "mqtt_unreachable"
    assert wanted.broker.address in raised.value.ended.reason.detail


@pytest.mark.parametrize("host", ["no-such-host.invalid", f"{'a' * 64}.invalid"])
async def test_a_host_without_an_address_is_unreachable(version: Version, host: str) -> None:
    async with fake_broker() as broker:
        wanted = request(broker, host=host)
    with pytest.raises(ConnectionEndedError) as raised:
        await version.connector.connect(wanted, Collector())
    assert raised.value.ended.reason.code == "mqtt_unreachable"


@pytest.mark.parametrize("turns", range(12))
async def test_a_cancelled_connect_leaves_nothing_behind(version: Version, turns: int) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:  # the kernel accepts, nobody answers
        before = asyncio.all_tasks()
        wanted = request(MqttBroker(*listening.getsockname()))
        connecting = asyncio.ensure_future(version.connector.connect(wanted, Collector()))
        for _ in range(turns):
            await asyncio.sleep(0)
        connecting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await connecting
        assert asyncio.all_tasks() == before
    gc.collect()  # what was not closed warns here, and a warning fails the test


async def test_a_connect_cancelled_while_it_waits_for_connack_closes_the_socket(version: Version) -> None:
    async with fake_broker() as broker:
        peer, connecting, _ = await version.connecting(broker)
        connecting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await connecting
        await peer.closed_by_client()


async def test_nothing_is_left_of_a_connection_that_was_aborted(version: Version) -> None:
    before = asyncio.all_tasks()
    async with version.faked() as (connection, _, peer):
        connection.abort()
        assert not connection.is_open
        assert (await ended(connection)).reason.code == "mqtt_closed"
        await peer.closed_by_client()
        connection.abort()
        connection.acknowledge([])
        connection.pause_reading()
        connection.resume_reading()
        await connection.leave()
    assert asyncio.all_tasks() == before
    gc.collect()


# --- messages -------------------------------------------------------------------------------------------------------


async def test_messages_in_the_segment_of_connack_are_received_after_connected(version: Version) -> None:
    speak = version.speak
    resent = [speak.publish("a", b"%d" % n, packet_id=n, duplicate=True) for n in range(1, 4)]
    async with version.faked(*resent, session_present=True) as (_, collector, _):
        messages = await collector.wait(3)
    assert [(m.topic, m.payload, m.qos, m.packet_id, m.duplicate) for m in messages] == [
        ("a", b"%d" % n, 1, n, True) for n in range(1, 4)
    ]
    assert all(not m.subscription_ids for m in messages)


async def test_messages_of_one_read_are_handed_over_together_with_their_size(version: Version) -> None:
    speak = version.speak
    published = [speak.publish("ü/b", b"x" * 200, packet_id=n) for n in range(1, 11)]
    published.append(speak.publish("q0", b"", qos=0))
    async with version.faked() as (_, collector, peer):
        peer.write(*published)
        messages = await collector.wait(11)
    assert [m.packet_id for m in messages] == [*range(1, 11), None]
    assert len(collector.reads) == 1
    bare = 10 * (4 + 200) + 2
    assert 0 <= collector.reads[0][1] - bare - 11 * MESSAGE_OVERHEAD_BYTES <= 11 * 8


async def test_a_publish_before_connack_breaks_the_protocol(version: Version) -> None:
    refused = await version.refusal(version.speak.publish("a"), version.speak.connack())
    assert refused.reason.code == "mqtt_protocol"


async def test_a_second_connack_breaks_the_protocol(version: Version) -> None:
    async with version.faked(version.speak.connack()) as (connection, _, _):
        assert (await ended(connection)).reason.code == "mqtt_protocol"
        assert not connection.is_open


async def test_a_packet_that_is_not_for_clients_breaks_the_protocol(version: Version) -> None:
    async with version.faked() as (connection, _, peer):
        peer.write(packet(0xC0, b""))
        assert (await ended(connection)).reason.code == "mqtt_protocol"


@codec_panics
async def test_a_topic_that_is_not_utf8_is_malformed_and_what_came_before_is_received(version: Version) -> None:
    bad = version.speak.publish(BAD_UTF8, b"x", packet_id=2)
    async with version.faked() as (connection, collector, peer):
        peer.write(version.speak.publish("a", b"good"), bad, version.speak.publish("a", b"behind", packet_id=3))
        reason = await ended(connection)
        assert reason.malformed == bad
        assert reason.reason.code == "mqtt_malformed_packet"
        assert collector.payloads == [b"good"]
        said = await peer.closed_by_client()
    assert said == (b"\xe0\x01\x81" if version.protocol == "5" else b"")


@pytest.mark.parametrize(
    "bad",
    [
        pytest.param(b"\x30\xff\xff\xff\xff\x7f", id="length"),
        pytest.param(b"\x36\x06\x00\x01a\x00\x01\x00", id="QoS 3"),
        pytest.param(b"\x32\x02\x00\x07", id="shorter than its topic"),
        pytest.param(b"\x32\x04\x00\x01a\x00", id="half a packet id"),
        pytest.param(b"\x90\x01\x00", id="SUBACK without packet id"),
        pytest.param(b"\xd0\x01\x00", id="PINGRESP with a body"),
    ],
)
async def test_a_packet_that_cannot_be_decoded_is_malformed(version: Version, bad: bytes) -> None:
    async with version.faked() as (connection, _, peer):
        peer.write(bad)
        reason = await ended(connection)
        assert reason.malformed is not None
        assert bad.startswith(reason.malformed)
        assert reason.malformed.hex() in reason.reason.detail
        said = await peer.closed_by_client()
    assert said == (b"\xe0\x01\x81" if version.protocol == "5" else b"")


@codec_panics
async def test_the_same_malformed_packet_has_the_same_sample_wherever_a_read_ends(version: Version) -> None:
    bad = version.speak.publish(BAD_UTF8, b"x" * 300)
    samples = []
    for behind in (b"", version.speak.publish("a", b"behind", packet_id=9)):
        async with version.faked() as (connection, _, peer):
            peer.write(bad, behind)
            samples.append((await ended(connection)).malformed)
    assert samples == [bad, bad]


async def test_packets_arrive_whole_wherever_they_are_split(version: Version) -> None:
    speak = version.speak
    stream = speak.publish("a/b", b"one") + PINGRESP + speak.publish("c", b"x" * 150, packet_id=2)
    async with version.faked() as (_, collector, peer):
        for count, cut in enumerate(range(1, len(stream)), 1):
            peer.write(stream[:cut])
            await peer.flushed()
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            peer.write(stream[cut:])
            await collector.wait(2 * count)
    assert collector.payloads == [b"one", b"x" * 150] * (len(stream) - 1)


async def test_a_connection_works_byte_by_byte(version: Version) -> None:
    speak = version.speak
    async with fake_broker() as broker:
        peer, connecting, collector = await version.connecting(broker)
        await peer.write_slowly(speak.connack(session_present=True) + speak.publish("a", b"x" * 130))
        connection = await connecting
        assert connection.granted.session_present
        await collector.wait(1)
        assert collector.payloads == [b"x" * 130]
        connection.abort()


async def test_a_large_message_arrives(version: Version, mosquitto: MqttBroker, unique: str) -> None:
    large = bytes(range(256)) * 20_000
    async with version.connected(request(mosquitto, unique, clean_start=True)) as (connection, collector):
        await connection.subscribe(subscriptions(unique))
        await publish(mosquitto.host, mosquitto.port, [(unique, b"before"), (unique, large), (unique, b"behind")])
        await collector.wait(3)
        await connection.leave()
    assert collector.payloads == [b"before", large, b"behind"]


async def test_every_qos_is_received(version: Version, mosquitto: MqttBroker, unique: str) -> None:
    async with version.connected(request(mosquitto, unique, clean_start=True)) as (connection, collector):
        await connection.subscribe(subscriptions(unique))
        for qos in (0, 1):
            await publish(mosquitto.host, mosquitto.port, [(unique, b"x")], qos=qos)
        messages = await collector.wait(2)
    assert [(m.qos, m.packet_id is None) for m in messages] == [(0, True), (1, False)]


# --- acknowledging --------------------------------------------------------------------------------------------------


async def test_acknowledgements_are_written_in_the_order_given_and_none_for_qos_0(version: Version) -> None:
    speak = version.speak
    async with version.faked() as (connection, collector, peer):
        peer.write(*(speak.publish("a", packet_id=n) for n in (7, 300, 65_535)), speak.publish("a", qos=0))
        messages = await collector.wait(4)
        connection.acknowledge([messages[2], messages[3], messages[0], messages[1]])
        assert [(await peer.expect(PUBACK)).packet_id for _ in range(3)] == [65_535, 7, 300]


async def test_leaving_loses_no_acknowledgement_while_more_messages_arrive(
    version: Version, own_mosquitto: Callable[..., Mosquitto], unique: str
) -> None:
    broker = own_mosquitto(persistence=False)
    first = numbered(unique, range(5_000))
    async with version.connected(request(broker, unique)) as (connection, _):
        await connection.subscribe(subscriptions(unique))
        await connection.leave()
    await publish(broker.host, broker.port, first)
    async with version.connected(request(broker, unique), Collector(acknowledge=2_000)) as (connection, collector):
        more = asyncio.create_task(publish(broker.host, broker.port, numbered(unique, range(5_000, 15_000))))
        await collector.wait(2_000)
        await connection.leave()
        assert not more.done(), "leaving was meant to happen while messages arrive"
        await more
    acknowledged = {message.payload for message in collector.acknowledged}
    assert len(acknowledged) == 2_000
    async with version.connected(request(broker, unique), Collector(acknowledge=20_000)) as (connection, collector):
        assert connection.granted.session_present
        expected = [b"%d" % n for n in range(15_000) if b"%d" % n not in acknowledged]
        await collector.wait(len(expected))
        await connection.unsubscribe([unique])  # its answer comes behind every message
        assert collector.payloads == expected
        await connection.leave()


async def test_unacknowledged_messages_come_again_marked_as_duplicates(
    version: Version, mosquitto: MqttBroker, unique: str
) -> None:
    async with version.connected(request(mosquitto, unique)) as (connection, collector):
        await connection.subscribe(subscriptions(unique))
        await publish(mosquitto.host, mosquitto.port, numbered(unique, range(10)))
        first = await collector.wait(10)
        connection.acknowledge(first[:4])
        await connection.leave()
    async with version.connected(request(mosquitto, unique), Collector(acknowledge=6)) as (connection, collector):
        again = await collector.wait(6)
        assert [(m.payload, m.packet_id) for m in again] == [(m.payload, m.packet_id) for m in first[4:]]
        assert all(m.duplicate for m in again)
        assert not any(m.duplicate for m in first)
        await connection.leave()
    async with version.connected(request(mosquitto, unique)) as (connection, collector):
        await connection.unsubscribe([unique])
        assert not collector.messages
        await connection.leave()


# --- leaving --------------------------------------------------------------------------------------------------------


async def test_leaving_waits_for_the_answer_to_its_own_pingreq(version: Version) -> None:
    async with version.faked(keep_alive=1) as (connection, _, peer):
        assert (await peer.packet()).kind == PINGREQ  # the keep alive's, unanswered so far
        leaving = asyncio.create_task(connection.leave())
        assert (await peer.packet()).kind == PINGREQ
        next_packet = asyncio.ensure_future(peer.packet())
        peer.write(PINGRESP)
        assert not (await asyncio.wait([next_packet], timeout=0.3))[0]
        peer.write(PINGRESP)
        assert (await next_packet).kind == DISCONNECT
        peer.close()
        await leaving
    assert not connection.is_open


async def test_leaving_discards_what_still_arrives(version: Version) -> None:
    async with version.faked() as (connection, collector, peer):
        leaving = asyncio.create_task(connection.leave())
        await peer.expect(PINGREQ)
        peer.write(version.speak.publish("a", b"late"), PINGRESP)
        await peer.expect(DISCONNECT)
        peer.write(version.speak.publish("a", b"later"))
        peer.close()
        await leaving
    assert not collector.messages
    assert [message.payload for message in collector.discards] == [b"late", b"later"]


async def test_what_was_written_is_processed_when_its_own_pingresp_comes(version: Version) -> None:
    async with version.faked() as (connection, _, peer):
        calls: list[int] = []
        for number in (1, 2):
            connection.when_processed(functools.partial(calls.append, number))
            await peer.expect(PINGREQ)
        assert calls == []
        peer.write(PINGRESP)
        await until(lambda: calls == [1])
        peer.write(PINGRESP, PINGRESP)  # one more than was asked for does no harm
        await until(lambda: calls == [1, 2])
        assert connection.is_open


@pytest.mark.parametrize(
    ("payload", "most"), [(b"", base.SLICE_PACKETS), (bytes(2_000), 1 + base.SLICE_BYTES // 2_000)]
)
async def test_a_receiver_that_has_enough_gets_the_rest_of_a_read_when_reading_goes_on(
    version: Version, payload: bytes, most: int
) -> None:
    """Messages take much more memory than their bytes: a read of empty ones would overrun any small budget."""

    class Full(Collector):
        def received(self, messages: Sequence[Message], size: int) -> None:
            super().received(messages, size)
            assert self.connection is not None
            self.connection.pause_reading()

    receiver = Full()
    async with fake_broker() as broker:
        connecting = asyncio.ensure_future(version.connector.connect(request(broker), receiver))
        peer = await broker.peer()
        peer.write(version.speak.connack())
        connection = await connecting
        count = 3 * base.SLICE_PACKETS + 1
        peer.write(*(version.speak.publish("a", payload, packet_id=n + 1) for n in range(count)))
        while len(receiver.messages) < count:
            held = len(receiver.messages)
            await until(lambda: len(receiver.messages) > held)  # noqa: B023 - awaited right here
            assert len(receiver.messages) <= held + most
            connection.resume_reading()
        assert [message.packet_id for message in receiver.messages] == list(range(1, count + 1))
        assert receiver.on_the_way[0] > 0, "what is kept undecoded is counted"
        connection.abort()


async def test_after_a_read_that_comes_in_parts_the_receiver_hears_once_that_it_has_all(version: Version) -> None:
    async with version.faked() as (_, collector, peer):
        count = 2 * base.SLICE_PACKETS + 1
        peer.write(*(version.speak.publish("a", packet_id=n + 1) for n in range(count)))
        await collector.wait(count)
        await until(lambda: collector.whole_reads[-1:] == [count])
        assert len(collector.reads) == 3
        assert collector.whole_reads == [0, count]  # CONNACK came alone


async def test_of_a_large_message_on_its_way_the_receiver_hears_how_much_is_held(version: Version) -> None:
    async with version.faked() as (_, collector, peer):
        packet = version.speak.publish("a", bytes(3_000_000))
        peer.write(packet[:2_000_000])
        await until(lambda: collector.on_the_way[-1:] == [2_000_000])
        assert not collector.messages
        peer.write(packet[2_000_000:])
        await collector.wait(1)


async def test_while_it_rests_messages_gather_and_then_arrive_together(version: Version) -> None:
    async with version.faked() as (connection, collector, peer):
        rested = asyncio.Event()
        connection.rest(0.3, rested.set)
        for number in range(10):
            peer.write(version.speak.publish("a", packet_id=number + 1))
            await peer.flushed()
        await asyncio.sleep(0.1)
        assert not collector.messages
        await collector.wait(10)
        assert rested.is_set()
        assert [count for count, _ in collector.reads] == [10]


@pytest.mark.parametrize("pauses_first", [False, True])
async def test_a_rest_does_not_end_a_pause_nor_a_pause_a_rest(version: Version, pauses_first: bool) -> None:
    async with version.faked() as (connection, collector, peer):
        rested = asyncio.Event()
        if pauses_first:
            connection.pause_reading()
        connection.rest(0.2, rested.set)
        connection.rest(60, rested.set)  # one rest at a time
        connection.pause_reading()
        peer.write(version.speak.publish("a"))
        await rested.wait()
        await asyncio.sleep(0.1)
        assert not collector.messages
        connection.rest(0.2, rested.set)
        connection.resume_reading()
        await asyncio.sleep(0.1)
        assert not collector.messages
        await collector.wait(1)


async def _owe_reading(version: Version, connection: Connection, collector: Collector, peer: Peer) -> int:
    """Acknowledge 1,000 messages again and again, more than sockets take; returns how often."""
    count, rounds = 1_000, 4_000
    peer.write(*(version.speak.publish("a", packet_id=n) for n in range(1, count + 1)))
    messages = await collector.wait(count)
    peer.stop_reading()
    for _ in range(rounds):
        connection.acknowledge(messages)
        await asyncio.sleep(0)
    return rounds


async def test_a_broker_that_does_not_read_is_not_read_from_until_it_does(
    version: Version, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unsent, "MOST_PIECES", 100)
    async with version.faked() as (connection, collector, peer):
        rounds = await _owe_reading(version, connection, collector, peer)
        peer.write(version.speak.publish("a", b"later", packet_id=1_001))
        await asyncio.sleep(0.2)
        assert collector.payloads[-1] == b""
        peer.read_on()
        for _ in range(rounds):
            assert await peer.exactly(4_000) == b"".join(b"\x40\x02%c%c" % divmod(n, 256) for n in range(1, 1_001))
        await collector.wait(1_001)
        assert collector.payloads[-1] == b"later"


async def test_a_broker_that_is_owed_reading_has_longer_to_answer(
    version: Version, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unsent, "MOST_PIECES", 100)
    async with version.faked(keep_alive=2) as (connection, collector, peer):
        await _owe_reading(version, connection, collector, peer)
        monkeypatch.setattr(base, "PINGRESP_TIMEOUT_SECONDS", 0.2)
        assert not (await asyncio.wait([connection.ended], timeout=3))[0]


async def test_a_broker_that_never_reads_is_given_up(version: Version, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unsent, "MOST_PIECES", 100)
    monkeypatch.setattr(base, "UNSENT_SECONDS", 0.5)
    async with version.faked(keep_alive=2) as (connection, collector, peer):
        await _owe_reading(version, connection, collector, peer)
        monkeypatch.setattr(base, "PINGRESP_TIMEOUT_SECONDS", 0.2)
        ending = await ended(connection)
        assert ending.reason.code == "mqtt_keep_alive"
        assert "within 0.5 s" in ending.reason.detail


async def test_a_broker_that_breaks_the_protocol_and_does_not_read_is_not_waited_for(
    version: Version, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(v5, "SHUTDOWN_SECONDS", 0.2)
    monkeypatch.setattr(wire, "SHUTDOWN_SECONDS", 0.2)
    monkeypatch.setattr(unsent, "MOST_PIECES", 1 << 30)  # it is read from all the same
    async with version.faked() as (connection, collector, peer):
        await _owe_reading(version, connection, collector, peer)
        peer.write(version.speak.connack())  # a second one
        assert (await ended(connection)).reason.code == "mqtt_protocol"


async def test_leaving_ends_a_rest(version: Version) -> None:
    async with version.faked() as (connection, collector, peer):
        rested = asyncio.Event()
        connection.rest(60, rested.set)
        leaving = asyncio.create_task(connection.leave())
        await peer.expect(PINGREQ)
        peer.write(version.speak.publish("a", b"late"), PINGRESP)
        await peer.expect(DISCONNECT)
        peer.close()
        await leaving
        assert rested.is_set()
        assert collector.discards


async def test_leaving_reads_on_when_reading_was_paused(version: Version) -> None:
    async with version.faked() as (connection, collector, peer):
        connection.pause_reading()
        peer.write(version.speak.publish("a", b"unread"))
        leaving = asyncio.create_task(connection.leave())
        connection.pause_reading()
        await peer.expect(PINGREQ)
        peer.write(PINGRESP)
        await peer.expect(DISCONNECT)
        peer.close()
        await leaving
    assert not collector.messages


async def test_leaving_a_silent_broker_takes_as_long_as_allowed_and_no_longer(
    version: Version, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base, "LEAVE_PINGRESP_SECONDS", 0.1)
    monkeypatch.setattr(base, "LEAVE_CLOSE_SECONDS", 0.1)
    async with version.faked() as (connection, _, peer):
        async with asyncio.timeout(TIMEOUT):
            await connection.leave()
        assert await peer.closed_by_client() == bytes([PINGREQ << 4, 0, DISCONNECT << 4, 0])


async def test_leaving_that_is_cancelled_closes_the_connection(version: Version) -> None:
    async with version.faked() as (connection, _, peer):
        leaving = asyncio.create_task(connection.leave())
        await peer.expect(PINGREQ)
        leaving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaving
        await peer.closed_by_client()
        await ended(connection)


# --- subscribing ----------------------------------------------------------------------------------------------------


async def test_subscribing_returns_the_qos_granted_per_filter(version: Version) -> None:
    async with version.faked() as (connection, _, peer):
        subscribing = asyncio.create_task(connection.subscribe(subscriptions("a", "b/#")))
        if version.protocol == "5":
            for granted in (1, 0):
                peer.write(version.speak.suback((await peer.expect(SUBSCRIBE)).packet_id, granted))
        else:
            asked = await peer.expect(SUBSCRIBE)
            assert asked.body[2:] == b"\x00\x01a\x01\x00\x03b/#\x01"
            peer.write(version.speak.suback(asked.packet_id, 1, 0))
        assert await subscribing == {"a": 1, "b/#": 0}


async def test_a_refused_filter_is_named_and_the_connection_stays(version: Version) -> None:
    async with version.faked() as (connection, _, peer):
        subscribing = asyncio.create_task(connection.subscribe(subscriptions("good", "bad")))
        if version.protocol == "5":
            for code in (1, 0x87):
                peer.write(version.speak.suback((await peer.expect(SUBSCRIBE)).packet_id, code))
        else:
            peer.write(version.speak.suback((await peer.expect(SUBSCRIBE)).packet_id, 1, 0x80))
        with pytest.raises(SubscriptionRefusedError) as raised:
            await subscribing
        assert raised.value.reason.code == "mqtt_subscription_refused"
        assert "'bad'" in raised.value.reason.detail
        assert "'good'" not in raised.value.reason.detail
        assert connection.is_open


async def test_a_subscribe_without_answer_ends_the_connection(
    version: Version, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base, "SUBACK_TIMEOUT_SECONDS", 0.1)
    async with version.faked() as (connection, _, peer):
        with pytest.raises(ConnectionEndedError) as raised:
            await connection.subscribe(subscriptions("a"))
        assert raised.value.ended.reason.code == "mqtt_timeout"
        assert "SUBACK" in raised.value.ended.reason.detail
        assert (await ended(connection)).reason.code == "mqtt_timeout"
        await peer.closed_by_client()


async def test_an_unsubscribe_without_answer_ends_the_connection(
    version: Version, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base, "SUBACK_TIMEOUT_SECONDS", 0.1)
    async with version.faked() as (connection, _, _):
        with pytest.raises(ConnectionEndedError) as raised:
            await connection.unsubscribe(["a"])
        assert "UNSUBACK" in raised.value.ended.reason.detail


async def test_a_connection_lost_while_subscribing_says_why(version: Version) -> None:
    async with version.faked() as (connection, _, peer):
        subscribing = asyncio.create_task(connection.subscribe(subscriptions("a")))
        await peer.expect(SUBSCRIBE)
        peer.close()
        with pytest.raises(ConnectionEndedError) as raised:
            await subscribing
        assert raised.value.ended.reason.code == "mqtt_connection_lost"
        with pytest.raises(ConnectionEndedError):
            async with asyncio.timeout(TIMEOUT):
                await connection.subscribe(subscriptions("a"))
        with pytest.raises(ConnectionEndedError):
            async with asyncio.timeout(TIMEOUT):
                await connection.unsubscribe(["a"])


async def test_messages_are_received_while_subscribing(version: Version) -> None:
    async with version.faked() as (connection, collector, peer):
        subscribing = asyncio.create_task(connection.subscribe(subscriptions("a")))
        asked = await peer.expect(SUBSCRIBE)
        peer.write(version.speak.publish("a", b"early"), version.speak.suback(asked.packet_id, 1))
        assert await subscribing == {"a": 1}
        assert collector.payloads == [b"early"]


async def test_unsubscribing_waits_for_its_answer_and_ends_the_messages(
    version: Version, mosquitto: MqttBroker, unique: str
) -> None:
    async with version.connected(request(mosquitto, unique, clean_start=True)) as (connection, collector):
        assert await connection.subscribe(subscriptions(f"{unique}/a", f"{unique}/b")) == {
            f"{unique}/a": 1,
            f"{unique}/b": 1,
        }
        await connection.unsubscribe([f"{unique}/a"])
        await publish(mosquitto.host, mosquitto.port, [(f"{unique}/a", b"gone"), (f"{unique}/b", b"kept")])
        await collector.wait(1)
        assert collector.payloads == [b"kept"]


async def test_unsubscribing_is_one_packet(version: Version) -> None:
    async with version.faked() as (connection, _, peer):
        unsubscribing = asyncio.create_task(connection.unsubscribe(["a", "b"]))
        asked = await peer.expect(UNSUBSCRIBE)
        assert asked.body.endswith(b"\x00\x01a\x00\x01b")
        peer.write(version.speak.unsuback(asked.packet_id, 0, 0))
        await unsubscribing


# --- losing the connection ------------------------------------------------------------------------------------------


async def test_a_reset_connection_is_lost(version: Version) -> None:
    async with version.faked() as (connection, _, peer):
        peer.reset()
        reason = await ended(connection)
        assert reason.reason.code == "mqtt_connection_lost"
        assert not reason.silent
        assert not connection.is_open


async def test_a_broker_that_is_killed_is_noticed_at_once(
    version: Version, own_mosquitto: Callable[..., Mosquitto], unique: str
) -> None:
    broker = own_mosquitto(persistence=False)
    async with version.connected(request(broker, unique)) as (connection, _):
        broker.kill()
        assert (await ended(connection)).reason.code == "mqtt_connection_lost"


# --- keep alive and back-pressure -----------------------------------------------------------------------------------


async def test_a_broker_that_answers_no_pingreq_is_given_up(version: Version, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "PINGRESP_TIMEOUT_SECONDS", 0.2)
    async with version.faked(keep_alive=2) as (connection, _, peer):  # PINGREQ comes after 1 to 2 s
        await peer.expect(PINGREQ)
        ending = await ended(connection)
        assert ending.reason.code == "mqtt_keep_alive"
        assert 1.2 <= ending.unheard_seconds < 5  # since CONNACK, before the PINGREQ
        await peer.closed_by_client()


async def test_pingreqs_go_out_at_ticks_so_that_many_connections_wake_us_once(version: Version) -> None:
    async with version.faked(keep_alive=7):
        (at,) = version.ticks()
        assert at % 5 == 0
        assert 1 < at - asyncio.get_running_loop().time() <= 7


async def test_connections_that_are_made_together_do_not_all_send_their_pingreqs_together(version: Version) -> None:
    async with AsyncExitStack() as stack:
        for number in range(12):
            await stack.enter_async_context(version.faked(client_id=f"me-{number}", keep_alive=15))
        assert 3 <= len(version.ticks()) <= 4  # it may have become the next tick meanwhile
        assert max(version.ticks()) - asyncio.get_running_loop().time() <= 15


async def test_an_answered_pingreq_leaves_no_timer_but_that_of_the_next(version: Version) -> None:
    async with version.faked(keep_alive=2) as (connection, _, peer):
        await peer.expect(PINGREQ)
        await until(lambda: len(version.ticks()) == 2)  # that of the next, and whether this one is answered
        peer.write(PINGRESP)
        await until(lambda: len(version.ticks()) == 1)
        assert connection.is_open


async def test_a_connection_that_ended_leaves_no_timer(version: Version) -> None:
    async with version.faked(keep_alive=2) as (_, _, peer):
        await peer.expect(PINGREQ)
        assert version.ticks()
    assert not version.ticks()


async def test_a_broker_that_answers_is_kept(version: Version, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "PINGRESP_TIMEOUT_SECONDS", 0.3)
    async with version.faked(keep_alive=1) as (connection, _, peer):
        for _ in range(3):
            await peer.expect(PINGREQ)
            peer.write(PINGRESP)
        assert connection.is_open


async def test_a_broker_that_sends_messages_before_pingresp_is_not_silent(
    version: Version, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base, "PINGRESP_TIMEOUT_SECONDS", 0.4)
    async with version.faked(keep_alive=1) as (connection, _, peer):
        await peer.expect(PINGREQ)
        for n in range(1, 9):  # a backlog that takes longer than PINGRESP may
            peer.write(version.speak.publish("a", packet_id=n))
            await asyncio.wait([connection.ended], timeout=0.1)
        peer.write(PINGRESP)
        await peer.expect(PINGREQ)
        assert connection.is_open


async def test_while_reading_is_paused_pingreqs_go_on_and_no_answer_is_judged(
    version: Version, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base, "PINGRESP_TIMEOUT_SECONDS", 0.2)
    async with version.faked(keep_alive=1) as (connection, collector, peer):
        connection.pause_reading()
        connection.pause_reading()
        for n in range(1, 4):
            await peer.expect(PINGREQ)
            peer.write(version.speak.publish("a", b"%d" % n, packet_id=n), PINGRESP)
        assert connection.is_open
        assert not collector.messages
        connection.resume_reading()
        await collector.wait(3)
        assert collector.payloads == [b"1", b"2", b"3"]
        await peer.expect(PINGREQ)
        peer.write(PINGRESP)
        await peer.expect(PINGREQ)
        assert connection.is_open


async def test_an_answer_that_waits_for_the_end_of_a_rest_is_not_missed(
    version: Version, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base, "PINGRESP_TIMEOUT_SECONDS", 0.2)
    async with version.faked(keep_alive=1) as (connection, _, peer):
        rested = asyncio.Event()
        connection.rest(2, rested.set)
        await peer.expect(PINGREQ)
        peer.write(PINGRESP)
        await rested.wait()
        await peer.expect(PINGREQ)
        peer.write(PINGRESP)
        await peer.expect(PINGREQ)
        assert connection.is_open


async def test_a_broker_that_stays_silent_after_a_pause_is_given_up(
    version: Version, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base, "PINGRESP_TIMEOUT_SECONDS", 0.2)
    async with version.faked(keep_alive=1) as (connection, _, peer):
        connection.pause_reading()
        await peer.expect(PINGREQ)
        await peer.expect(PINGREQ)
        connection.resume_reading()
        assert (await ended(connection)).reason.code == "mqtt_keep_alive"


async def test_a_pause_longer_than_the_keep_alive_loses_nothing(
    version: Version, mosquitto: MqttBroker, unique: str
) -> None:
    sent = numbered(unique, range(3_000))
    async with version.connected(request(mosquitto, unique, keep_alive=1)) as (connection, collector):
        await connection.subscribe(subscriptions(unique))
        connection.pause_reading()
        await publish(mosquitto.host, mosquitto.port, sent)
        assert not (await asyncio.wait([connection.ended], timeout=3.5))[0]
        assert not collector.messages
        connection.resume_reading()
        messages = await collector.wait(3_000)
        connection.acknowledge(messages)
        await connection.leave()
    assert collector.payloads == [payload for _, payload in sent]
    assert not any(message.duplicate for message in messages)


# --- only MQTT 5 ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (0x85, "mqtt_client_id"),
        (0x86, "mqtt_authentication"),
        (0x87, "mqtt_not_authorized"),
        (0x88, "mqtt_unavailable"),
        (0x9F, "mqtt_rate"),
    ],
)
async def test_a_refusal_has_its_reason(five: Version, code: int, reason: str) -> None:
    refused = await five.refusal(five.speak.connack(code))
    assert refused.reason.code == reason
    assert not refused.version_refused
    assert not refused.silent


@pytest.mark.parametrize("answer", [b"\x20\x02\x00\x01", b"\x20\x03\x00\x84\x00"])
async def test_a_broker_without_mqtt_5_refuses_the_version(five: Version, answer: bytes) -> None:
    refused = await five.refusal(answer)
    assert refused.version_refused
    assert refused.malformed is None
    assert refused.reason.code == "mqtt_protocol_version"


async def test_the_answer_of_a_311_broker_is_known_byte_by_byte(five: Version) -> None:
    async with fake_broker() as broker:
        peer, connecting, _ = await five.connecting(broker)
        await peer.write_slowly(b"\x20\x02\x00\x01")
        with pytest.raises(ConnectionEndedError) as raised:
            await connecting
    assert raised.value.ended.version_refused


async def test_what_the_broker_grants_overrides_what_was_asked(five: Version) -> None:
    async with fake_broker() as broker:
        peer, connecting, _ = await five.connecting(broker, client_id="")
        granted = mqtt5.ConnAckPacket(
            session_expiry_interval=30,
            assigned_client_id="given",
            server_keep_alive=1,
            subscription_id_available=False,
        )
        peer.write(granted.write())
        connection = await connecting
        assert connection.granted.session_expiry == 30
        assert connection.granted.client_id == "given"
        assert not connection.granted.subscription_identifiers
        await peer.expect(PINGREQ)  # after 1 s instead of 60
        connection.abort()


async def test_receive_maximum_and_session_expiry_are_sent(five: Version) -> None:
    async with fake_broker() as broker:
        connecting = asyncio.ensure_future(five.connector.connect(request(broker, "id"), Collector()))
        peer = await broker.peer()
        body = (await peer.packet()).body
        assert b"\x11" + (600).to_bytes(4, "big") in body
        assert b"\x21\xff\xfe" in body
        assert b"\x27" not in body  # no Maximum Packet Size: a broker would drop larger messages silently
        connecting.cancel()
        await asyncio.wait([connecting])


async def test_a_takeover_that_is_told_is_certain(five: Version) -> None:
    async with five.faked() as (connection, _, peer):
        peer.write(packet(0xE0, b"\x8e"))
        reason = await ended(connection)
        assert reason.takeover
        assert reason.reason.code == "mqtt_takeover"


async def test_a_disconnect_of_the_broker_has_its_reason(five: Version) -> None:
    async with five.faked() as (connection, collector, peer):
        peer.write(five.speak.publish("a", b"before"), packet(0xE0, b"\x8b"))
        reason = await ended(connection)
        assert reason.reason.code == "mqtt_shutdown"
        assert not reason.takeover
        assert collector.payloads == [b"before"]


async def test_a_broken_protocol_is_told_to_the_broker(five: Version) -> None:
    async with five.faked() as (_, _, peer):
        peer.write(packet(0xC0, b""))
        assert await peer.closed_by_client() == b"\xe0\x01\x82"


async def test_qos_2_is_answered_by_pubrec_and_released_by_pubcomp(five: Version) -> None:
    unreleased = {99}
    async with five.faked(unreleased=unreleased, session_present=True) as (connection, collector, peer):
        peer.write(five.speak.publish("a", b"x", qos=2, packet_id=5))
        messages = await collector.wait(1)
        assert messages[0].qos == 2
        connection.acknowledge(messages)
        received = await peer.expect(PUBREC)
        assert received.packet_id == 5
        assert unreleased == {99, 5}
        peer.write(pubrel(5))
        completed = await peer.expect(PUBCOMP)
        assert completed.packet_id == 5
        assert completed.body[2:] in (b"", b"\x00", b"\x00\x00")
        assert unreleased == {99}
        peer.write(pubrel(5))
        completed = await peer.expect(PUBCOMP)
        assert completed.body[:3] == b"\x00\x05\x92"


async def test_pubrel_behind_connack_is_answered_from_the_session(five: Version) -> None:
    unreleased = {7}
    async with five.faked(pubrel(7), unreleased=unreleased, session_present=True) as (_, _, peer):
        assert (await peer.expect(PUBCOMP)).body[2:3] in (b"", b"\x00")
    assert not unreleased


async def test_a_new_session_knows_no_qos_2_ids(five: Version) -> None:
    unreleased = {7}
    async with five.faked(pubrel(7), unreleased=unreleased) as (_, _, peer):
        assert (await peer.expect(PUBCOMP)).body[2:3] == b"\x92"
    assert not unreleased


async def test_qos_2_works_with_a_real_broker(five: Version, mosquitto: MqttBroker, unique: str) -> None:
    unreleased: set[int] = set()
    wanted = request(mosquitto, unique, unreleased=unreleased)
    async with five.connected(wanted, Collector(acknowledge=200)) as (connection, collector):
        assert await connection.subscribe(subscriptions(unique, qos=2)) == {unique: 2}
        await publish(mosquitto.host, mosquitto.port, numbered(unique, range(200)), qos=2)
        messages = await collector.wait(200)
        assert {int(m.qos) for m in messages} == {2}
        await connection.unsubscribe([unique])
        await connection.leave()
    async with five.connected(request(mosquitto, unique, unreleased=unreleased)) as (connection, collector):
        assert connection.granted.session_present
        await connection.unsubscribe([unique])
        assert not collector.messages
        assert not unreleased
        await connection.leave()


async def test_overlapping_filters_are_told_apart_by_their_identifiers(
    five: Version, mosquitto: MqttBroker, unique: str
) -> None:
    async with five.connected(request(mosquitto, unique, clean_start=True)) as (connection, collector):
        assert connection.granted.subscription_identifiers
        wanted = [Subscription(f"{unique}/+/b", 1, 1), Subscription(f"{unique}/a/#", 1, 2)]
        await connection.subscribe(wanted)
        await publish(mosquitto.host, mosquitto.port, [(f"{unique}/a/b", b"both"), (f"{unique}/a/c", b"second")])
        messages = await collector.wait(3)  # Mosquitto sends one copy per filter
        await connection.unsubscribe([each.topic_filter for each in wanted])
    found = sorted((message.payload, message.subscription_ids) for message in messages)
    assert found == [(b"both", [1]), (b"both", [2]), (b"second", [2])]


async def test_retained_messages_are_replayed_only_for_a_new_subscription(
    five: Version, mosquitto: MqttBroker, unique: str
) -> None:
    await publish(mosquitto.host, mosquitto.port, [(unique, b"kept")], retain=True)
    async with five.connected(request(mosquitto, unique), Collector(acknowledge=1)) as (connection, collector):
        await connection.subscribe(subscriptions(unique))
        await collector.wait(1)
        await connection.subscribe(subscriptions(unique))
        await connection.unsubscribe([unique])
        assert collector.payloads == [b"kept"]
        await connection.leave()
    await publish(mosquitto.host, mosquitto.port, [(unique, b"")], retain=True)


# --- uvloop, as the service runs -------------------------------------------------------------------------------------


def test_others_have_their_turn_between_two_reads_however_much_there_is() -> None:
    """While each read fills its buffer libuv goes on, up to 32 times."""

    async def most_reads_a_turn() -> int:
        async with Version("5").faked() as (_, collector, peer):
            count = 3_000
            peer.write(*(Dialect("5").publish("a", bytes(10_000), packet_id=n + 1) for n in range(count)))
            most = 0
            while len(collector.messages) < count:
                before = len(collector.whole_reads)
                await asyncio.sleep(0)
                most = max(most, len(collector.whole_reads) - before)
            assert [message.packet_id for message in collector.messages] == list(range(1, count + 1))
            return most

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert runner.run(most_reads_a_turn()) == 1
