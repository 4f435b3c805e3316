"""Where the bytes of a socket go until they are whole packets."""

from __future__ import annotations

import mmap

from server.mqtt.packet import packet_size

# What is read at once, as uvloop does for protocols that leave it the choice.
READ_BYTES = 256 * 1024


class SharedBuffer:
    """What all connections of one event loop read into: each is done with it before the next one reads."""

    def __init__(self) -> None:
        self.view = memoryview(bytearray(READ_BYTES))


class ReadBuffer:
    """The bytes of one connection that are not decoded yet.

    A read lands behind what was left of the last one, so that packets are decoded where they lie. A packet that fills
    more than half of the shared buffer is read into memory of its own, to its end and not a byte further: what is read
    with it would be held as well for as long as it is, by each of hundreds of connections.
    """

    def __init__(self, shared: SharedBuffer) -> None:
        self._shared = shared.view
        self._left = b""
        self._needed = 0  # the size of the packet that begins there, if known
        self._own: memoryview | None = None
        self._filled = 0  # of `_own`

    @property
    def waiting(self) -> int:
        """How many bytes are held."""
        return self._filled if self._own is not None else len(self._left)

    def room(self) -> memoryview:
        """Where the next read shall go; never empty."""
        if self._own is None:
            left = len(self._left)
            if left <= len(self._shared) // 2:
                self._shared[:left] = self._left
                return self._shared[left:]
            self._move(self._left, left + READ_BYTES)
        return self._own[self._filled :] if self._own is not None else self._shared

    def filled(self, size: int) -> memoryview | None:
        """So many bytes were read into `room()`. Returns what to decode, None while the packet there lacks more."""
        if self._own is not None:
            self._filled += size
            return self.whole()
        data = self._shared[: len(self._left) + size]
        if len(data) < self._needed:
            self.keep(data)
            return None
        self._left, self._needed = b"", 0
        return data

    def whole(self) -> memoryview | None:
        """What is held, if a whole packet is part of it; it is not held any more then."""
        if self.waiting < self._needed or not self.waiting:
            return None
        data = memoryview(self._left) if self._own is None else self._own[: self._filled]
        self._left, self._own, self._needed = b"", None, 0
        return data

    def keep(self, rest: memoryview) -> None:
        """Hold what follows the last packet that was decoded."""
        self._needed = packet_size(rest) or 0
        if len(rest) < self._needed and self._needed > len(self._shared) // 2:
            self._move(rest, self._needed)
        else:
            self._left = bytes(rest)

    def _move(self, content: bytes | memoryview, size: int) -> None:
        # Unlike a bytearray it takes no memory before it is written to: the size is only what a broker says.
        self._own = memoryview(mmap.mmap(-1, size))
        self._filled = len(content)
        self._own[: self._filled] = content
        self._left = b""
