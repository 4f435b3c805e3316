"""The proxy that keeps few messages in flight."""

from __future__ import annotations

import mqtt5
import pytest

from loadtest.window import Packets, Window


def message(number: int, qos: int = 1, size: int = 10) -> bytes:
    packet_id = number if qos else None
    return mqtt5.PublishPacket("a/b", b"x" * size, qos=mqtt5.QoS(qos), packet_id=packet_id).write()


def ack(number: int) -> bytes:
    return mqtt5.PubAckPacket(number).write()


@pytest.mark.parametrize("step", [1, 2, 7, 1_000_000])
def test_a_stream_is_cut_into_packets_however_it_arrives(step: int) -> None:
    wanted = [message(1), ack(5), message(2, size=200), mqtt5.PingRespPacket().write(), message(3, size=20_000)]
    stream, cut = b"".join(wanted), Packets()
    found = [packet for at in range(0, len(stream), step) for packet in cut.cut(stream[at : at + step])]
    assert found == wanted


def test_no_more_than_the_window_passes_until_something_is_acknowledged() -> None:
    window, messages = Window(3), [message(number) for number in range(1, 8)]
    assert window.from_broker(iter(messages)) == b"".join(messages[:3])
    assert window.from_client(iter([ack(1), ack(2)])) == b"".join(messages[3:5])
    assert window.from_client(iter([mqtt5.PingReqPacket().write()])) == b""
    assert window.from_client(iter(map(ack, (3, 4, 5)))) == b"".join(messages[5:])


def test_a_qos_2_message_is_in_flight_until_pubcomp() -> None:
    window, messages = Window(1), [message(1, 2), message(2, 2)]
    assert window.from_broker(iter(messages)) == messages[0]
    assert window.from_client(iter([mqtt5.PubRecPacket(1).write()])) == b""
    assert window.from_client(iter([mqtt5.PubCompPacket(1).write()])) == messages[1]


def test_what_is_no_acknowledged_message_passes_at_once() -> None:
    window, released = Window(1), mqtt5.PubRelPacket(9).write()
    window.from_broker(iter([message(1)]))
    assert window.from_broker(iter([message(2), message(3, 0), released])) == message(3, 0) + released
