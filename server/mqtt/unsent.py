"""What is written while a broker does not read, held as small as it can be."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from server.mqtt.packet import PUBACK_BYTES, pubacks

if TYPE_CHECKING:
    from collections.abc import Sequence

# A broker that keeps to the protocol does not come to owe reading so much: it has no more packet ids in flight than
# 65,535. Twice as many, for of PUBACKs with other packets between them both count.
MOST_PIECES = 2 * 65_535


class Unsent:
    """Packets in their order; PUBACKs whose packet ids follow each other are two numbers, however many they are.

    Mosquitto 2.0 sends a queue of millions before it reads one of them (0023).
    """

    def __init__(self) -> None:
        self._pieces: deque[bytearray | list[int]] = deque()  # packets, or the first id of PUBACKs and how many
        self._bytes = 0  # of the packets

    def __bool__(self) -> bool:
        return bool(self._pieces)

    @property
    def is_too_much(self) -> bool:
        """Whether the broker has to read before more is held for it."""
        return len(self._pieces) + self._bytes // PUBACK_BYTES > MOST_PIECES

    def add(self, packets: bytes) -> None:
        """Hold these behind all others."""
        if not packets:
            return
        self._bytes += len(packets)
        last = self._pieces[-1] if self._pieces else None
        if isinstance(last, bytearray):
            last += packets
        else:
            self._pieces.append(bytearray(packets))

    def add_pubacks(self, packet_ids: Sequence[int]) -> None:
        """Hold PUBACKs for these ids, in this order, behind all others."""
        start, count = 0, len(packet_ids)
        while start < count:
            first, end = packet_ids[start], start + 1
            while end < count and packet_ids[end] == first + end - start:
                end += 1
            last = self._pieces[-1] if self._pieces else None
            if isinstance(last, list) and sum(last) == first:
                last[1] += end - start
            else:
                self._pieces.append([first, end - start])
            start = end

    def take(self, size: int) -> bytes:
        """Whole packets, the first that are held: about so many bytes of them, or all there are."""
        taken: list[bytes | bytearray] = []
        while self._pieces and size > 0:
            piece = self._pieces[0]
            if isinstance(piece, bytearray):
                self._bytes -= len(piece)
                size -= len(piece)
                taken.append(piece)
                self._pieces.popleft()
                continue
            first, count = piece
            part = min(count, max(1, size // PUBACK_BYTES))
            size -= part * PUBACK_BYTES
            taken.append(pubacks(range(first, first + part)))
            if part == count:
                self._pieces.popleft()
            else:
                piece[:] = first + part, count - part
        return b"".join(taken)
