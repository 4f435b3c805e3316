"""What only MQTT 3.1.1 through aiomqtt and paho has; what both versions owe the port is in test_mqtt_5.py."""

from __future__ import annotations

import asyncio
import gc
import logging
import socket
import weakref
from typing import TYPE_CHECKING

import pytest
import uvloop

from server.mqtt.port import ConnectionEndedError
from tests.brokers import MqttBroker
from tests.devices import publish, session_exists
from tests.fakebroker import DISCONNECT, PINGREQ, PUBACK, PUBCOMP, SUBSCRIBE, fake_broker, packet, pubrel
from tests.integration.test_mqtt_5 import Collector, Version, ended, numbered, request, subscriptions
from tests.sockets import reset_on_close

if TYPE_CHECKING:
    from collections.abc import Callable

    from server.mqtt.port import Connection
    from tests.brokers import Mosquitto


@pytest.fixture
def old() -> Version:
    return Version("3.1.1")


# --- connecting -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (2, "mqtt_client_id"),
        (3, "mqtt_unavailable"),
        (4, "mqtt_authentication"),
        (5, "mqtt_not_authorized"),
        (0x80, "mqtt_refused"),
    ],
)
@pytest.mark.parametrize("client_id", ["id", ""])
async def test_a_refusal_has_its_reason(old: Version, code: int, reason: str, client_id: str) -> None:
    refused = await old.refusal(old.speak.connack(code), client_id=client_id)
    assert refused.reason.code == reason
    assert not refused.version_refused
    assert not refused.silent


async def test_a_broker_without_mqtt_311_refuses_the_version_and_is_not_asked_again(old: Version) -> None:
    async with fake_broker() as broker:
        peer, connecting, _ = await old.connecting(broker)
        peer.write(old.speak.connack(1))
        with pytest.raises(ConnectionEndedError) as raised:
            await connecting
        assert raised.value.ended.version_refused
        assert raised.value.ended.reason.code == "mqtt_protocol_version"
        assert len(broker.made) == 1  # paho by itself would come back with MQTT 3.1


async def test_a_real_broker_refuses_credentials(
    old: Version, own_mosquitto: Callable[..., Mosquitto], unique: str
) -> None:
    broker = own_mosquitto(extra=["password_file /dev/null", "allow_anonymous false"])
    with pytest.raises(ConnectionEndedError) as raised:
        await old.connector.connect(request(broker, unique, credentials={"username": "no"}), Collector())
    assert raised.value.ended.reason.code == "mqtt_not_authorized"


async def test_without_expiry_the_session_is_clean(old: Version, mosquitto: MqttBroker, unique: str) -> None:
    async with old.connected(request(mosquitto, unique, session_expiry=0)) as (connection, _):
        await connection.leave()
    assert not await session_exists(mosquitto.host, mosquitto.port, unique, "3.1.1")


async def test_nothing_is_granted_that_311_does_not_have(old: Version) -> None:
    async with old.faked() as (connection, _, _):
        assert connection.granted.session_expiry is None
        assert not connection.granted.subscription_identifiers


async def test_paho_and_aiomqtt_log_nothing(old: Version, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        async with old.faked() as (connection, collector, peer):
            peer.write(old.speak.publish("a"), old.speak.suback(77, 1), old.speak.unsuback(78))
            connection.acknowledge(await collector.wait(1))
            await peer.expect(PUBACK)
            peer.reset()
            await ended(connection)
    assert [record for record in caplog.records if record.name != "asyncio"] == []


async def test_a_connection_that_ended_is_freed(old: Version) -> None:
    async with old.faked() as (connection, collector, peer):
        peer.close()
        await ended(connection)
        known = weakref.ref(connection)
    del connection, collector
    gc.collect()
    assert known() is None


# --- messages -------------------------------------------------------------------------------------------------------


async def test_a_qos_2_message_ends_the_connection_unanswered(old: Version) -> None:
    first, second = old.speak.publish("a", b"first"), old.speak.publish("a", b"x", qos=2, packet_id=2)
    async with old.faked() as (connection, collector, peer):
        peer.write(first, second, old.speak.publish("a", b"third", packet_id=3))
        reason = await ended(connection)
        assert reason.reason.code == "mqtt_qos2_session"
        assert "QoS 2" in reason.reason.detail
        assert reason.malformed is None
        assert collector.payloads == [b"first"]
        assert await peer.closed_by_client() == b""


async def test_qos_2_messages_stay_with_a_real_broker(old: Version, mosquitto: MqttBroker, unique: str) -> None:
    five = Version("5")
    async with five.connected(request(mosquitto, unique)) as (connection, _):
        await connection.subscribe(subscriptions(unique, qos=2))
        await connection.leave()
    await publish(mosquitto.host, mosquitto.port, numbered(unique, range(5)), qos=2)
    collector = Collector()
    try:
        connection = await old.connector.connect(request(mosquitto, unique), collector)
    except ConnectionEndedError as error:
        reason = error.ended
    else:
        reason = await ended(connection)
    assert reason.reason.code == "mqtt_qos2_session"
    assert not collector.messages
    async with five.connected(request(mosquitto, unique), Collector(acknowledge=5)) as (connection, collector):
        await collector.wait(5)
        await connection.unsubscribe([unique])
        assert collector.payloads == [b"%d" % n for n in range(5)]
        await connection.leave()


async def test_pubrel_is_answered(old: Version) -> None:
    unreleased = {7, 8}
    async with old.faked(pubrel(7), unreleased=unreleased, session_present=True) as (connection, _, peer):
        assert (await peer.expect(PUBCOMP)).body == b"\x00\x07"
        assert unreleased == {8}
        peer.write(pubrel(999))
        assert (await peer.expect(PUBCOMP)).packet_id == 999
        assert connection.is_open


async def test_a_new_session_knows_no_qos_2_ids(old: Version) -> None:
    unreleased = {7}
    async with old.faked(unreleased=unreleased):
        assert not unreleased


@pytest.mark.parametrize(
    "bad",
    [
        pytest.param(b"\x32\x05\x00\x01a\x00\x00", id="packet id 0"),
        pytest.param(b"\x30\x02\x00\x00", id="no topic"),
        pytest.param(b"\x90\x03\x00\x01\x07", id="SUBACK with an unknown code"),
        pytest.param(b"\xb0\x01\x00", id="UNSUBACK without packet id"),
        pytest.param(b"\x62\x01\x00", id="PUBREL without packet id"),
    ],
)
async def test_a_packet_that_paho_would_take_or_choke_on_is_malformed(old: Version, bad: bytes) -> None:
    async with old.faked() as (connection, _, peer):
        peer.write(bad)
        assert (await ended(connection)).malformed == bad


@pytest.mark.parametrize("early", [packet(0xD0, b""), packet(0x90, b"\x00\x01\x00")])
async def test_any_packet_before_connack_breaks_the_protocol(old: Version, early: bytes) -> None:
    refused = await old.refusal(early)
    assert refused.reason.code == "mqtt_protocol"


async def test_a_suback_of_the_wrong_length_breaks_the_protocol(old: Version) -> None:
    async with old.faked() as (connection, _, peer):
        subscribing = asyncio.create_task(connection.subscribe(subscriptions("a", "b")))
        peer.write(old.speak.suback((await peer.expect(SUBSCRIBE)).packet_id, 1))
        with pytest.raises(ConnectionEndedError) as raised:
            await subscribing
        assert raised.value.ended.reason.code == "mqtt_protocol"
        assert not connection.is_open


async def test_a_receiver_that_fails_ends_the_connection_and_is_heard_of(old: Version) -> None:
    heard: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: heard.append(context.get("exception")))

    class Failing(Collector):
        def connected(self, connection: Connection) -> None:
            super().connected(connection)
            raise ZeroDivisionError

    async with fake_broker() as broker:
        connecting = asyncio.ensure_future(old.connector.connect(request(broker), Failing()))
        (await broker.peer()).write(old.speak.connack())
        with pytest.raises(ConnectionEndedError):
            await connecting
    assert isinstance(heard[0], ZeroDivisionError)


# --- acknowledging --------------------------------------------------------------------------------------------------


async def test_what_is_acknowledged_together_leaves_in_one_write(old: Version, monkeypatch: pytest.MonkeyPatch) -> None:
    async with old.faked() as (connection, collector, peer):
        peer.write(*(old.speak.publish("a", packet_id=n) for n in range(1, 1_001)))
        messages = await collector.wait(1_000)
        wire = connection._wire  # type: ignore[attr-defined]
        writes: list[int] = []
        send = wire.send

        def counting(data: bytes) -> int:
            writes.append(len(data))
            return int(send(data))

        monkeypatch.setattr(wire, "send", counting)
        connection.acknowledge(messages)
        for n in range(1, 1_001):
            assert (await peer.expect(PUBACK)).packet_id == n
        assert writes == [4_000]


async def test_acknowledgements_wait_for_a_broker_that_does_not_read(old: Version) -> None:
    count, rounds = 65_000, 100
    async with old.faked() as (connection, collector, peer):
        peer.write(*(old.speak.publish("a", packet_id=n) for n in range(1, count + 1)))
        messages = await collector.wait(count)
        for _ in range(rounds):  # 26 MB, more than any socket buffer takes
            connection.acknowledge(messages)
        expected = b"".join(b"\x40\x02" + n.to_bytes(2, "big") for n in range(1, count + 1))
        for _ in range(rounds):
            assert await peer.exactly(len(expected)) == expected


# --- losing the connection ------------------------------------------------------------------------------------------


async def test_a_close_may_be_a_takeover_and_says_so(old: Version) -> None:
    async with old.faked() as (connection, _, peer):
        peer.close()
        reason = await ended(connection)
        assert not reason.takeover
        assert not reason.silent
        assert "another client" in reason.reason.detail


async def test_a_close_noticed_by_writing_may_be_a_takeover_too(old: Version) -> None:
    async with old.faked() as (connection, collector, peer):
        peer.write(old.speak.publish("a"))
        messages = await collector.wait(1)
        connection.pause_reading()
        peer.reset()
        while connection.is_open:
            connection.acknowledge(messages)
            await asyncio.wait([connection.ended], timeout=0.01)
        assert "another client" in (await ended(connection)).reason.detail


async def test_leaving_is_no_takeover(old: Version, mosquitto: MqttBroker, unique: str) -> None:
    async with old.connected(request(mosquitto, unique)) as (connection, _):
        await connection.leave()
        assert connection.ended.done()


async def test_leaving_sends_its_packets_in_order_behind_the_acknowledgements(old: Version) -> None:
    async with old.faked() as (connection, collector, peer):
        peer.write(old.speak.publish("a", packet_id=3))
        connection.acknowledge(await collector.wait(1))
        leaving = asyncio.create_task(connection.leave())
        assert [(await peer.packet()).kind for _ in range(2)] == [PUBACK, PINGREQ]
        peer.write(b"\xd0\x00")
        assert (await peer.packet()).kind == DISCONNECT
        peer.close()
        await leaving


# --- uvloop, as the service runs -------------------------------------------------------------------------------------


def test_a_reset_behind_messages_is_noticed_at_once() -> None:
    """A socket with an error is watched no more by uvloop once its reader was called, though it may have read data."""

    async def reset_behind_a_message() -> None:
        loop = asyncio.get_running_loop()
        old = Version("3.1.1")
        with socket.create_server(("127.0.0.1", 0)) as listening:
            listening.setblocking(False)
            to = request(MqttBroker("127.0.0.1", listening.getsockname()[1]))
            collector = Collector()
            connecting = asyncio.create_task(old.connector.connect(to, collector))
            end, _ = await loop.sock_accept(listening)
            await loop.sock_recv(end, 1_000)
            await loop.sock_sendall(end, old.speak.connack())
            connection = await connecting
            end.send(old.speak.publish("a", b"before"))
            reset_on_close(end)
            end.close()
            assert (await ended(connection)).reason.code == "mqtt_connection_lost"
            assert [message.payload for message in collector.messages] == [b"before"]

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(reset_behind_a_message())
