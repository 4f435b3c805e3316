"""Mutated MQTT packets against the real connections: nothing breaks, and no message gets through that was not sent.

Each stream is drawn from `--security-seed` and its own number, and both stand in the message of a failure.
"""

from __future__ import annotations

import asyncio
import gc
import random
import sys
import time
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from server.mqtt import v311
from server.mqtt.readbuffer import SharedBuffer
from tests.security.extent import EXTENT
from tests.security.mqtt_reading import PUBLISH, Message, NotWellFormedError, frames, kind, read_publish
from tests.security.mqtt_rig import Outcome, feed_5, feed_311
from tests.security.mqtt_streams import Stream, draw_stream

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

_CPU_SECONDS = 5.0  # for one stream, which takes milliseconds
_GROWTH = 48_000_000  # bytes
_TOLD_BYTES = 2_000
# What may come at any time from a broker and does not end the connection: PUBREL, SUBACK, UNSUBACK, PINGRESP.
_CONNACK, _HARMLESS = 2, {6, 9, 11, 13}
# No broker sends these, and Kafka does not mind them: the codecs let them pass, and to look for them here would cost
# something for each message. What is handed on is still the topic and the end of what came.
_TOLERATED = {
    "a null character",
    "a topic with wildcards",
    "DUP at QoS 0",
    "a payload format that does not exist",
    "properties longer than they say",
}
_MALFORMED = "mqtt_malformed_packet"


def _feed(protocol: str) -> Callable[[bytes, random.Random], Awaitable[Outcome]]:
    if protocol == "5":
        return partial(feed_5, shared=SharedBuffer())
    return partial(feed_311, connector=v311.Connector())


@pytest.fixture
def _silent_panics(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget what nobody can catch: the mqtt5 codec panics on invalid UTF-8, and that says so in this way too.

    pytest would keep each of them, with all that hangs on it, to the end of the test.
    """
    told = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        of_codec = unraisable.object is None and issubclass(unraisable.exc_type, UnicodeDecodeError)
        if not of_codec and unraisable.exc_type.__name__ != "PanicException":
            told(unraisable)

    monkeypatch.setattr(sys, "unraisablehook", hook)


@pytest.mark.usefixtures("_silent_panics")
@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
@pytest.mark.timeout(1_200)
async def test_no_stream_of_mutated_packets_breaks_a_connection_or_gets_more_through_than_is_in_it(
    protocol: str, pytestconfig: pytest.Config
) -> None:
    seed, feed = pytestconfig.getoption("--security-seed"), _feed(protocol)
    told: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
    number = mutated = 0
    memory: int | None = None
    while mutated < EXTENT.mqtt_packets:
        rng = random.Random(f"{seed} {protocol} {number}")  # noqa: S311 - not a secret
        stream = draw_stream(rng, protocol)
        began = time.process_time()
        try:
            outcome = await feed(stream.data, rng)
            faults = [*outcome.faults, *_faults(stream, protocol, outcome), *map(str, told)]
        except Exception as error:
            error.add_note(_place(seed, protocol, number, stream))
            raise
        if (took := time.process_time() - began) > _CPU_SECONDS:
            faults.append(f"took {took:.1f} s")
        assert not faults, f"{faults}\n{_place(seed, protocol, number, stream)}"
        mutated += stream.mutated
        number += 1
        if number == 200:  # by now everything is loaded
            memory = _memory()
    assert memory is not None
    assert _memory() - memory < _GROWTH


def _memory() -> int:
    gc.collect()
    used: int = psutil.Process().memory_full_info().uss
    return used


def _place(seed: int, protocol: str, number: int, stream: Stream) -> str:
    return (
        f"--security-seed {seed}, MQTT {protocol}, stream {number}: {', '.join(stream.kinds) or 'nothing mutated'}; "
        f"it begins with {stream.data[:_TOLD_BYTES].hex()}"
    )


def _faults(stream: Stream, protocol: str, outcome: Outcome) -> list[str]:
    """What this connection did that it must not."""
    faults = []
    packets, _ = frames(stream.data)
    publishes = [packet for packet in packets if kind(packet) == PUBLISH]
    if len(outcome.handed) > len(publishes):
        faults.append(f"{len(outcome.handed)} messages were handed on of {len(publishes)}")
    for message, packet in zip(outcome.handed, publishes, strict=False):
        found = Message(message.topic, message.payload, int(message.qos), message.duplicate, message.packet_id)
        try:
            if read_publish(packet, protocol) != found:
                faults.append(f"{found} was handed on for {packet[:100].hex()}")
        except NotWellFormedError as error:
            if not _is_tolerated(found, error):
                faults.append(f"{packet[:100].hex()} was handed on, but: {error}")
    if len(outcome.handed) < (owed := _owed(stream.data[: stream.sound])):
        faults.append(f"{len(outcome.handed)} of {owed} sound messages were handed on; it ended with {outcome.ended}")
    reason = outcome.ended.reason
    if not reason.code.startswith("mqtt_") or not reason.detail or reason.code == "mqtt_closed":
        faults.append(f"it ended with {reason}")
    if (reason.code == _MALFORMED) != (outcome.ended.malformed is not None):
        faults.append(f"{reason} and malformed={outcome.ended.malformed!r}")
    if reason.code == _MALFORMED and not stream.mutated:
        faults.append(f"a sound stream was refused: {reason}")
    return faults


def _is_tolerated(found: Message, error: NotWellFormedError) -> bool:
    """Whether nothing but this is wrong with the message, which is harmless and would cost something to find."""
    meant = error.message
    if error.why not in _TOLERATED or meant is None:
        return False
    return replace(found, payload=b"") == replace(meant, payload=b"") and meant.payload.endswith(found.payload)


def _owed(sound: bytes) -> int:
    """How many messages of a stream without any mistake have to be handed on."""
    packets, _ = frames(sound)
    if not packets or kind(packets[0]) != _CONNACK:
        return 0
    count = 0
    for packet in packets[1:]:
        if kind(packet) == PUBLISH:
            count += 1
        elif kind(packet) not in _HARMLESS:
            break
    return count
