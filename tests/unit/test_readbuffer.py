"""The read buffer: whatever the reads, the packets come out whole and in order, and nothing is held beside them."""

from __future__ import annotations

import mqtt5
import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.mqtt.packet import packet_size
from server.mqtt.readbuffer import READ_BYTES, ReadBuffer, SharedBuffer


def _publish(payload: bytes) -> bytes:
    return bytes(mqtt5.PublishPacket(topic="t", payload=payload).write())


def _read(buffer: ReadBuffer, source: memoryview, most: int) -> tuple[int, memoryview | None]:
    """Read as a transport does: what there is, as far as there is room."""
    room = buffer.room()
    assert len(room) > 0
    size = min(len(room), most, len(source))
    room[:size] = source[:size]
    return size, buffer.filled(size)


def _taken(buffer: ReadBuffer, data: memoryview) -> list[bytes]:
    """Take whole packets out, and keep the rest."""
    packets, offset = [], 0
    while offset < len(data):
        size = packet_size(data, offset)
        if not size or offset + size > len(data):
            buffer.keep(data[offset:])
            break
        packets.append(bytes(data[offset : offset + size]))
        offset += size
    return packets


@given(
    sizes=st.lists(st.sampled_from([0, 1, 120, 200, 40_000, READ_BYTES // 2, READ_BYTES, 3 * READ_BYTES]), max_size=8),
    reads=st.lists(st.sampled_from([1, 2, 3, 70, 5_000, READ_BYTES, 10 * READ_BYTES]), min_size=1, max_size=5),
)
def test_whatever_the_reads_all_packets_come_out_whole_and_in_order(sizes: list[int], reads: list[int]) -> None:
    packets = [_publish(bytes([number]) * size) for number, size in enumerate(sizes)]
    source, buffer, taken = memoryview(b"".join(packets)), ReadBuffer(SharedBuffer()), []
    turns = 0
    while source:
        # Small reads would take long through a large packet, so they take turns with what there is.
        size, data = _read(buffer, source, reads[turns % len(reads)] if turns % 5 else READ_BYTES)
        source, turns = source[size:], turns + 1
        if data is not None:
            taken += _taken(buffer, data)
    assert taken == packets
    assert buffer.waiting == 0
    assert buffer.whole() is None


def test_a_large_packet_is_read_to_its_end_and_not_a_byte_further() -> None:
    large, buffer = _publish(bytes(1_000_000)), ReadBuffer(SharedBuffer())
    source = memoryview(large + _publish(b"next"))
    taken: list[bytes] = []
    held = []
    while not taken:
        size, data = _read(buffer, source, 10 * READ_BYTES)
        source = source[size:]
        taken = [] if data is None else _taken(buffer, data)
        held.append(buffer.waiting)
    assert taken == [large]
    assert held == [READ_BYTES, 0]
    assert bytes(source) == _publish(b"next")


def test_connections_share_what_they_read_into_and_nothing_that_is_left() -> None:
    shared = SharedBuffer()
    buffers = ReadBuffer(shared), ReadBuffer(shared)
    packets = _publish(b"first"), _publish(b"second")
    for buffer, packet in zip(buffers, packets, strict=True):
        _, data = _read(buffer, memoryview(packet[:5]), 100)
        assert data is not None
        assert _taken(buffer, data) == []
    for buffer, packet in zip(buffers, packets, strict=True):
        assert _read(buffer, memoryview(packet[5:6]), 100) == (1, None)
    for buffer, packet in zip(buffers, packets, strict=True):
        _, data = _read(buffer, memoryview(packet[6:]), 100)
        assert data is not None
        assert bytes(data) == packet


@pytest.mark.parametrize("most", [READ_BYTES, 100])
def test_what_is_kept_while_reading_is_paused_comes_out_before_and_with_what_is_read_next(most: int) -> None:
    buffer, packet = ReadBuffer(SharedBuffer()), _publish(bytes(1000))
    many = packet * (READ_BYTES // len(packet))
    size, data = _read(buffer, memoryview(many), READ_BYTES)
    assert data is not None
    buffer.keep(data)  # paused before the first of them
    assert buffer.waiting == size
    _, data = _read(buffer, memoryview(packet), most)  # a transport that reads all the same
    whole = b"" if data is None else bytes(data)
    assert whole == many + packet[:most]


def test_what_is_kept_can_be_taken_in_without_a_read() -> None:
    buffer, packet = ReadBuffer(SharedBuffer()), _publish(b"x")
    buffer.keep(memoryview(packet + packet[:3]))
    whole = buffer.whole()
    assert whole is not None
    assert bytes(whole) == packet + packet[:3]
    assert buffer.whole() is None
    buffer.keep(memoryview(packet[:3]))
    assert buffer.whole() is None
    assert buffer.waiting == 3


def test_a_length_that_is_too_long_is_shown_to_the_decoder() -> None:
    buffer = ReadBuffer(SharedBuffer())
    wrong = bytes.fromhex("30ffffffff01")
    _, data = _read(buffer, memoryview(wrong), 100)
    assert data is not None
    assert bytes(data) == wrong
