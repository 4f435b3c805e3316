"""Packets' lengths, and PUBLISH packets without their payloads."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.mqtt.packet import encoded_length, packet_size, split_publish


def publish(first: int, body: bytes) -> memoryview:
    """Make a packet of this body."""
    return memoryview(bytes([first]) + encoded_length(len(body)) + body)


@pytest.mark.parametrize(
    ("length", "encoded"),
    [  # MQTT 5.0, table 1-1
        (0, "00"),
        (127, "7f"),
        (128, "8001"),
        (16_383, "ff7f"),
        (16_384, "808001"),
        (2_097_151, "ffff7f"),
        (2_097_152, "80808001"),
        (268_435_455, "ffffff7f"),
    ],
)
def test_a_length_is_written_as_the_specification_says(length: int, encoded: str) -> None:
    assert encoded_length(length).hex() == encoded
    assert packet_size(b"\x30" + encoded_length(length)) == 1 + len(encoded) // 2 + length


@given(
    first=st.sampled_from([0x30, 0x31, 0x32, 0x33, 0x3A, 0x3D]),
    topic=st.binary(max_size=300) | st.sampled_from([b"t" * 16_384, b"t" * 65_535]),
    payload=st.binary(max_size=300) | st.sampled_from([b"x" * 16_384, b"x" * 2_097_152]),
)
def test_a_publish_is_split_into_a_packet_without_payload_and_the_payload(
    first: int, topic: bytes, payload: bytes
) -> None:
    head = len(topic).to_bytes(2, "big") + topic + (b"\x00\x07" if first & 0x06 else b"")
    assert split_publish(publish(first, head + payload)) == (bytes(publish(first, head)), memoryview(payload))


@pytest.mark.parametrize("body", [b"", b"\x00", b"\x00\x05abc", b"\x00\x03abc", b"\x00\x03abc\x00"])
def test_a_publish_too_short_for_topic_and_packet_id_stays_whole(body: bytes) -> None:
    packet = publish(0x32, body)
    assert split_publish(packet) == (bytes(packet), memoryview(b""))
