"""What WebSocket adds to a connection: the request, frames of all shapes, pings and closes; for both versions of MQTT.

What holds over TCP as well is in test_mqtt_carried.py; Mosquitto's own WebSockets are in test_mqtt_secure.py.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import socket
from typing import TYPE_CHECKING, Any

import pytest
from websockets.frames import CloseCode, Frame, Opcode

from server.mqtt import dial
from server.mqtt import websocket as websocket_module
from server.mqtt.port import ConnectionEndedError
from tests.brokers import MqttBroker
from tests.eachloop import on_each_loop
from tests.fakebroker import PUBACK, WebSocketPeer, fake_broker
from tests.integration.test_mqtt_5 import Collector, Version, ended, request
from tests.virtualtime import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from server.core.lifecycle import Reason

MANY = 300


@pytest.fixture(params=["5", "3.1.1"])
def version(request: pytest.FixtureRequest) -> Version:
    return Version(request.param, "ws")


@contextlib.asynccontextmanager
async def answering(respond: Callable[[bytes], bytes], *, closes: bool = True) -> AsyncIterator[MqttBroker]:
    """A server that answers the request for a WebSocket with what `respond` makes of it, and closes."""
    serving: list[asyncio.Task[None] | None] = []

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        serving.append(asyncio.current_task())
        with contextlib.suppress(ConnectionError):
            writer.write(respond(await reader.readuntil(b"\r\n\r\n")))
            if not closes:
                await reader.read()
            writer.close()
            await writer.wait_closed()

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    try:
        yield MqttBroker(*server.sockets[0].getsockname())
    finally:
        server.close()
        await server.wait_closed()
        await asyncio.wait(filter(None, serving))


def key_of(head: bytes) -> bytes:
    """What proves that the request was read (RFC 6455, 4.2.2)."""
    key = next(line.split(b": ")[1] for line in head.split(b"\r\n") if line.startswith(b"Sec-WebSocket-Key"))
    return base64.b64encode(hashlib.sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest())  # noqa: S324


def switching(head: bytes, subprotocol: bytes = b"mqtt") -> bytes:
    """Make a sound answer."""
    agreed = b"Sec-WebSocket-Protocol: " + subprotocol + b"\r\n" if subprotocol else b""
    return (
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: " + key_of(head) + b"\r\n" + agreed + b"\r\n"
    )


async def refusal(version: Version, broker: MqttBroker, **options: Any) -> Reason:
    """Why the connection could not be made."""
    with pytest.raises(ConnectionEndedError) as raised:
        await version.connector.connect(request(broker, transport="websocket", **options), Collector())
    return raised.value.ended.reason


# --- the request ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "headers", "said"),
    [
        (
            "301 Moved",
            "Location: https://there/mqtt?token=secret\r\n",
            "HTTP 301 Moved; it redirects to 'https://there/mqtt'",
        ),
        ("401 Unauthorized", "", "HTTP 401 Unauthorized; it wants credentials"),
        ("403 Forbidden", "", "HTTP 403 Forbidden; a rule"),
        ("404 Not Found", "Content-Length: 4\r\n", "HTTP 404 Not Found; check mqtt.path"),
        ("200 OK", "Content-Length: 4\r\n", "HTTP 200 OK; check mqtt.host"),
        ("503 Unavailable", "", "HTTP 503 Unavailable; it is not available"),
    ],
)
async def test_a_refusal_names_status_and_path(version: Version, status: str, headers: str, said: str) -> None:
    async with answering(lambda _: f"HTTP/1.1 {status}\r\n{headers}\r\nbody".encode()) as broker:
        reason = await refusal(version, broker, path="/way?signature=secret")
    assert reason.code == "mqtt_websocket_refused"
    assert f"ws://127.0.0.1:{broker.port}/way with {said}" in reason.detail
    assert "secret" not in reason.detail


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (lambda _: b"220 mail.example.org ESMTP\r\n\r\n", "it does not answer in HTTP"),
        (lambda _: b"", "it closed the connection"),
        (lambda head: switching(head, b""), "subprotocol mqtt"),
        (lambda head: switching(head, b"chat"), "unsupported subprotocol: chat"),
        (lambda head: switching(head).replace(key_of(head), b"AAAA"), "Sec-WebSocket-Accept"),
        (lambda head: switching(head).replace(b"websocket", b"h2c"), "Upgrade"),
    ],
)
async def test_an_answer_that_is_no_websocket_for_mqtt_says_what_is_wrong(
    version: Version, answer: Callable[[bytes], bytes], said: str
) -> None:
    async with answering(answer) as broker:
        reason = await refusal(version, broker)
    assert reason.code == "mqtt_websocket_protocol"
    assert said in reason.detail
    assert f"ws://127.0.0.1:{broker.port}/mqtt" in reason.detail


async def test_tls_on_the_port_is_told(version: Version) -> None:
    async with answering(lambda _: b"\x15\x03\x01\x00\x02\x02\x46") as broker:
        assert (await refusal(version, broker)).code == "mqtt_tls_expected"


async def test_a_server_that_never_answers_is_a_reason(version: Version, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dial, "HANDSHAKE_SECONDS", 0.1)
    async with answering(lambda _: b"", closes=False) as broker:
        reason = await refusal(version, broker)
    assert reason.code == "mqtt_websocket_protocol"
    assert "no answer to the request within 0.1 s" in reason.detail


async def test_the_request_has_path_host_and_subprotocol(version: Version) -> None:
    heads: list[bytes] = []

    def noting(head: bytes) -> bytes:
        heads.append(head)
        return b"HTTP/1.1 404 Not Found\r\n\r\n"

    async with answering(noting) as broker:
        await refusal(version, broker, path="/way?signature=x")
    lines = heads[0].split(b"\r\n")
    assert lines[0] == b"GET /way?signature=x HTTP/1.1"
    assert f"Host: 127.0.0.1:{broker.port}".encode() in lines
    assert b"Sec-WebSocket-Protocol: mqtt" in lines
    assert not any(line.startswith(b"Sec-WebSocket-Extensions") for line in lines)


@on_each_loop
async def test_a_connect_cancelled_in_the_request_closes_the_socket(version: Version) -> None:
    loop = asyncio.get_running_loop()
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.setblocking(False)
        before = asyncio.all_tasks()
        to = request(MqttBroker(*listening.getsockname()), transport="websocket")
        connecting = asyncio.ensure_future(version.connector.connect(to, Collector()))
        end, _ = await loop.sock_accept(listening)
        with end:
            assert await loop.sock_recv(end, 10_000)
            connecting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await connecting
            assert await loop.sock_recv(end, 1) == b""
        assert asyncio.all_tasks() == before


# --- frames -----------------------------------------------------------------------------------------------------------


def frame(peer: WebSocketPeer, opcode: Opcode, data: bytes = b"", *, fin: bool = True) -> None:
    """Send any frame, allowed or not."""
    peer.frames.send_frame(Frame(opcode, data, fin))
    peer.flush()


@pytest.mark.parametrize("size", [1, 7, 100, 100_000])
async def test_packets_arrive_whole_however_they_are_cut_into_frames(version: Version, size: int) -> None:
    packets = b"".join(version.speak.publish("a", b"%d" % n, packet_id=n + 1) for n in range(MANY))
    async with version.faked() as (_, collector, peer):
        assert isinstance(peer, WebSocketPeer)
        for start in range(0, len(packets), size):
            peer.write(packets[start : start + size])
        await collector.wait(MANY)
    assert collector.payloads == [b"%d" % n for n in range(MANY)]


async def test_packets_arrive_whole_from_fragmented_messages_with_pings_between(version: Version) -> None:
    packets = b"".join(version.speak.publish("a", b"%d" % n, packet_id=n + 1) for n in range(MANY))
    async with version.faked() as (_, collector, peer):
        assert isinstance(peer, WebSocketPeer)
        for start in range(0, len(packets), 1_000):
            frame(peer, Opcode.CONT if start else Opcode.BINARY, packets[start : start + 1_000], fin=False)
            frame(peer, Opcode.PING, b"%d" % start)
        frame(peer, Opcode.CONT)
        await collector.wait(MANY)
        pongs = range(0, len(packets), 1_000)
        await until(lambda: len(peer.received) > len(pongs))
        answered = [each.data for each in peer.received if each.opcode is Opcode.PONG]
    assert collector.payloads == [b"%d" % n for n in range(MANY)]
    assert answered == [b"%d" % start for start in pongs]


async def test_a_message_much_larger_than_a_read_arrives(version: Version) -> None:
    payload = bytes(range(256)) * 8_000
    async with version.faked() as (_, collector, peer):
        peer.write(version.speak.publish("a", b"before"), version.speak.publish("a", payload, packet_id=2))
        peer.write(version.speak.publish("a", b"behind", packet_id=3))
        await collector.wait(3)
    assert collector.payloads == [b"before", payload, b"behind"]


async def test_messages_of_many_frames_are_handed_over_together_and_acknowledged_in_one(version: Version) -> None:
    async with version.faked() as (connection, collector, peer):
        assert isinstance(peer, WebSocketPeer)
        for n in range(MANY):
            peer.write(version.speak.publish("a", packet_id=n + 1))
        messages = await collector.wait(MANY)
        assert len(collector.reads) < MANY / 10
        before = len(peer.received)
        connection.acknowledge(messages)
        for n in range(MANY):
            assert (await peer.expect(PUBACK)).packet_id == n + 1
        assert len(peer.received) == before + 1


@pytest.mark.parametrize(
    ("opcode", "data", "said"),
    [
        (Opcode.TEXT, b"hello", "text frames"),
        (Opcode.CONT, b"more of nothing", "continuation"),
    ],
)
async def test_a_frame_that_is_not_for_mqtt_ends_the_connection(
    version: Version, opcode: Opcode, data: bytes, said: str
) -> None:
    async with version.faked() as (connection, collector, peer):
        assert isinstance(peer, WebSocketPeer)
        peer.write(version.speak.publish("a", b"before"))
        frame(peer, opcode, data)
        reason = (await ended(connection)).reason
        assert reason.code == "mqtt_websocket_protocol"
        assert said in reason.detail
        assert collector.payloads in ([b"before"], [])


async def test_a_frame_larger_than_any_packet_ends_the_connection(
    version: Version, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(websocket_module, "MAX_FRAME_BYTES", 1_000)
    async with version.faked() as (connection, _, peer):
        peer.write(version.speak.publish("a", bytes(2_000)))
        reason = (await ended(connection)).reason
        assert reason.code == "mqtt_websocket_protocol"
        assert "exceeds limit of 1000 bytes" in reason.detail


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (CloseCode.NORMAL_CLOSURE, "mqtt_connection_lost: the connection to"),
        (CloseCode.GOING_AWAY, "mqtt_connection_lost: the connection to"),
        (CloseCode.POLICY_VIOLATION, "mqtt_websocket_closed: the broker closed the WebSocket"),
    ],
)
async def test_a_close_of_the_broker_is_answered_and_says_why(version: Version, code: CloseCode, expected: str) -> None:
    async with version.faked() as (connection, collector, peer):
        assert isinstance(peer, WebSocketPeer)
        peer.write(version.speak.publish("a", b"before"))
        peer.frames.send_close(code, "so it is")
        peer.flush()
        ending = await ended(connection)
        assert f"{ending.reason.code}: {ending.reason.detail}".startswith(expected)
        assert ending.unexplained == (ending.reason.code == "mqtt_connection_lost")
        assert collector.payloads == [b"before"]
        await peer.closed_by_client()
        assert peer.received[-1].opcode is Opcode.CLOSE
    if ending.reason.code == "mqtt_websocket_closed":
        assert "code 1008 'so it is'" in ending.reason.detail


def served(opcode: Opcode, data: bytes) -> bytes:
    """A frame as a server writes it."""
    return Frame(opcode, data).serialize(mask=False)


async def test_messages_in_the_read_of_a_close_are_received_and_what_answers_them_disturbs_nothing(
    version: Version,
) -> None:
    messages = b"".join(version.speak.publish("a", b"%d" % n, packet_id=n + 1) for n in range(3))
    async with version.faked() as (connection, collector, peer):
        assert isinstance(peer, WebSocketPeer)
        collector.acknowledge_from_now(3)
        peer.write_raw(served(Opcode.BINARY, messages) + served(Opcode.CLOSE, b"\x03\xe8"))
        assert (await ended(connection)).reason.code == "mqtt_connection_lost"
        assert len(collector.acknowledged) == 3


@pytest.mark.parametrize("code", [1002, 1000])
async def test_a_close_before_a_byte_of_mqtt_is_silent_whatever_its_code(version: Version, code: int) -> None:
    """Brokers that know only one version of MQTT may refuse the other like that."""
    close = served(Opcode.CLOSE, code.to_bytes(2, "big"))
    async with answering(lambda head: switching(head) + close) as broker:
        to = request(broker, transport="websocket")
        with pytest.raises(ConnectionEndedError) as raised:
            await version.connector.connect(to, Collector())
    assert raised.value.ended.silent


@pytest.mark.parametrize("host", ["[", "no such host"])
async def test_a_host_that_no_url_can_carry_is_unreachable(version: Version, host: str) -> None:
    assert (await refusal(version, MqttBroker("127.0.0.1", 1), host=host)).code == "mqtt_unreachable"


async def test_a_connection_that_breaks_the_protocol_of_mqtt_closes_the_websocket_behind_its_last_word(
    version: Version,
) -> None:
    async with version.faked() as (connection, _, peer):
        assert isinstance(peer, WebSocketPeer)
        peer.write(version.speak.connack())  # a second one
        assert (await ended(connection)).reason.code == "mqtt_protocol"
        said = await peer.closed_by_client()
        assert peer.received[-1].opcode is Opcode.CLOSE
        assert said.endswith(b"\xe0\x01\x82" if version.protocol == "5" else b"")


# --- back-pressure, over TLS too --------------------------------------------------------------------------------------


@on_each_loop
@pytest.mark.parametrize("kind", ["tls", "ws"])
@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
async def test_while_reading_is_paused_the_broker_feels_it_and_nothing_is_lost(protocol: str, kind: str) -> None:
    """What TLS, WebSocket and the kernel hold is bounded; it comes when reading goes on, in order."""
    version, count, payload = Version(protocol, kind), 3_000, bytes(20_000)
    async with fake_broker(kind) as broker:
        collector = Collector()
        connecting = asyncio.ensure_future(version.connector.connect(request(broker), collector))
        peer = await broker.peer()
        await peer.packet()
        peer.write(version.speak.connack())
        connection = await connecting
        connection.pause_reading()
        sent = 0

        async def send() -> None:
            nonlocal sent
            for n in range(count):
                peer.write(version.speak.publish("a", payload, packet_id=n + 1))
                await peer.flushed()
                sent = n + 1

        sending = asyncio.ensure_future(send())
        before = -1
        while sent != before:  # until nothing more is taken
            before = sent
            await asyncio.wait([sending], timeout=0.3)
        assert sent < count / 2, "60 MB are not taken by a connection that does not read"
        assert not collector.messages
        connection.resume_reading()
        await collector.wait(count)
        await sending
        assert [message.packet_id for message in collector.messages] == list(range(1, count + 1))
        connection.abort()
        await ended(connection)


@on_each_loop
@pytest.mark.parametrize("kind", ["tls", "ws"])
@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
async def test_what_comes_behind_a_pause_is_kept(protocol: str, kind: str) -> None:
    """A receiver that has enough after each slice: what was decrypted or unframed already must wait for it."""

    class Full(Collector):
        def received(self, messages: Any, size: int) -> None:
            super().received(messages, size)
            assert self.connection is not None
            self.connection.pause_reading()

    version, count = Version(protocol, kind), 5_000
    async with fake_broker(kind) as broker:
        collector = Full()
        connecting = asyncio.ensure_future(version.connector.connect(request(broker), collector))
        peer = await broker.peer()
        await peer.packet()
        peer.write(version.speak.connack())
        connection = await connecting
        peer.write(*(version.speak.publish("a", bytes(200), packet_id=n + 1) for n in range(count)))
        while len(collector.messages) < count:
            held = len(collector.messages)
            connection.resume_reading()
            await until(lambda: len(collector.messages) > held)  # noqa: B023 - awaited right here
        assert [message.packet_id for message in collector.messages] == list(range(1, count + 1))
        connection.abort()
        await ended(connection)
