"""What is held for a broker that does not read: all of it, in order, in little memory."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from server.mqtt.packet import packet_size, pubacks
from server.mqtt.unsent import MOST_PIECES, Unsent

LAST_ID = 65_535
PACKETS = st.sampled_from([b"\xc0\x00", b"\x50\x02\x00\x01" * 3, b""])
RUNS = st.builds(lambda first, count: [*range(first, first + count)], st.integers(1, 50), st.integers(0, 40))
IDS = st.one_of(RUNS, st.lists(st.integers(1, LAST_ID), max_size=5))


def _is_whole(part: bytes) -> bool:
    """Whether it ends where a packet does."""
    while part and (size := packet_size(part)):
        if size > len(part):
            return False
        part = part[size:]
    return not part


@given(st.lists(st.one_of(PACKETS, IDS)), st.lists(st.integers(1, 300)))
def test_what_is_taken_is_what_was_added_in_its_order_and_in_whole_packets(
    added: list[bytes | list[int]], sizes: list[int]
) -> None:
    unsent, expected = Unsent(), bytearray()
    for each in added:
        if isinstance(each, bytes):
            unsent.add(each)
            expected += each
        else:
            unsent.add_pubacks(each)
            expected += pubacks(each)
    assert bool(unsent) == bool(expected)
    parts = [unsent.take(size) for size in [*sizes, len(expected)]]
    assert b"".join(parts) == expected
    assert all(map(_is_whole, parts))
    assert not unsent
    assert not unsent.is_too_much


def test_acknowledgements_in_order_take_no_memory_however_many_they_are() -> None:
    unsent = Unsent()
    for _ in range(150):  # ten million
        for first in range(1, LAST_ID + 1, 1_000):
            unsent.add_pubacks([*range(first, min(first + 1_000, LAST_ID + 1))])
    assert len(vars(unsent)["_pieces"]) == 150
    assert not unsent.is_too_much


def test_no_more_is_held_than_a_broker_that_keeps_to_the_protocol_can_owe() -> None:
    unsent = Unsent()
    for packet_id in range(LAST_ID, 0, -1):
        unsent.add_pubacks([packet_id])
    assert not unsent.is_too_much
    for packet_id in range(LAST_ID, 0, -1):
        unsent.add_pubacks([packet_id])
    assert len(vars(unsent)["_pieces"]) == MOST_PIECES
    assert not unsent.is_too_much
    unsent.add(b"\x50\x02\x00\x01")
    assert unsent.is_too_much


def test_parts_are_about_as_large_as_asked_for() -> None:
    unsent = Unsent()
    unsent.add_pubacks(range(1, 1_001))
    assert unsent.take(400) == pubacks(range(1, 101))
    assert unsent.take(1) == pubacks([101])
    assert unsent.take(1 << 20) == pubacks(range(102, 1_001))
