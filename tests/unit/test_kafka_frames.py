"""Kafka's frames are handed on whole and in order, however the network cuts them, and no end goes unnoticed."""

from __future__ import annotations

import asyncio
import struct
import weakref
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.kafka.frames import Frames
from tests.virtualtime import in_virtual_time

if TYPE_CHECKING:
    from collections.abc import Iterable


class Ear:
    """Who listens."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.closed: asyncio.Future[None] = loop.create_future()
        self.protocol = Frames(self.closed, asyncio.StreamReader(loop=loop), loop=loop)
        self.frames: list[bytes] = []
        self.ends: list[BaseException] = []
        self.protocol.listen(self)

    def take_frame(self, frame: bytes) -> None:
        self.frames.append(frame)

    def no_more_frames(self, error: BaseException) -> None:
        self.ends.append(error)

    def receive(self, parts: Iterable[bytes]) -> None:
        for part in parts:
            self.protocol.data_received(part)


def wire(*frames: bytes) -> bytes:
    return b"".join(struct.pack(">i", len(frame)) + frame for frame in frames)


@given(frames=st.lists(st.binary(max_size=40), max_size=8), cuts=st.lists(st.integers(0, 400)))
def test_however_the_stream_is_cut_the_frames_are_the_same(frames: list[bytes], cuts: list[int]) -> None:
    @in_virtual_time
    async def received() -> None:
        ear, stream = Ear(), wire(*frames)
        edges = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
        ear.receive(stream[begin:end] for begin, end in pairwise(edges))
        assert ear.frames == frames
        assert not ear.ends

    received()


@in_virtual_time
@pytest.mark.parametrize(
    ("stream", "partial", "expected"),
    [(b"", b"", 4), (b"HT", b"HT", 4), (wire(b"abc")[:-1], b"ab", 3), (b"HTTP/1.1 400", b"/1.1 400", 0x48545450)],
)
async def test_an_end_says_what_had_begun(stream: bytes, partial: bytes, expected: int) -> None:
    ear = Ear()
    ear.receive([wire(b"whole"), stream])
    ear.protocol.eof_received()
    ear.protocol.connection_lost(None)
    (error,) = ear.ends
    assert isinstance(error, asyncio.IncompleteReadError)
    assert (error.partial, error.expected) == (partial, expected)
    assert ear.frames == [b"whole"]
    assert ear.closed.done()


@in_virtual_time
async def test_what_broke_the_connection_is_told() -> None:
    ear, reset = Ear(), ConnectionResetError("reset")
    ear.protocol.connection_lost(reset)
    assert ear.ends == [reset]


@in_virtual_time
async def test_a_frame_without_a_size_ends_it() -> None:
    ear = Ear()
    ear.receive([wire(b"a"), struct.pack(">i", -1), wire(b"b")])
    assert ear.frames == [b"a"]
    assert [str(end) for end in ear.ends] == ["a frame of -1 bytes"]


@in_virtual_time
async def test_behind_a_frame_that_can_not_be_taken_none_is() -> None:
    class Choosy(Ear):
        def take_frame(self, frame: bytes) -> None:
            super().take_frame(frame)
            if frame == b"bad":
                raise struct.error("too short")

    ear = Choosy()
    ear.receive([wire(b"good", b"bad", b"behind"), wire(b"later")])
    assert ear.frames == [b"good", b"bad"]
    assert [str(end) for end in ear.ends] == ["too short"]


@in_virtual_time
async def test_who_stops_listening_hears_no_frame_of_the_same_read_and_no_end() -> None:
    class Sated(Ear):
        def take_frame(self, frame: bytes) -> None:
            super().take_frame(frame)
            self.protocol.deafen()

    ear = Sated()
    ear.receive([wire(b"enough", b"more"), wire(b"even more")])
    ear.protocol.connection_lost(ConnectionResetError())
    assert ear.frames == [b"enough"]
    assert not ear.ends


@in_virtual_time
async def test_an_end_that_comes_before_anybody_listens_is_told() -> None:
    """So it is with uvloop, and a proxy that closes at once because there is nothing behind it."""
    ear = Ear()
    late = Frames(ear.closed, asyncio.StreamReader(), loop=asyncio.get_running_loop())
    late.eof_received()
    late.connection_lost(ConnectionResetError("what comes of writing then"))
    late.listen(ear)
    assert not ear.ends, "who listens is not ready yet"
    await asyncio.sleep(0)
    (error,) = ear.ends
    assert isinstance(error, asyncio.IncompleteReadError)


@in_virtual_time
async def test_it_keeps_nobody_alive() -> None:
    ear = Ear()
    protocol, gone = ear.protocol, weakref.ref(ear)
    del ear
    assert gone() is None
    protocol.data_received(wire(b"for nobody"))
    protocol.connection_lost(None)
