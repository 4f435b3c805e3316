"""QoS 2: PUBRECs go out evenly and in order, and the ids between PUBREC and PUBREL belong to the session."""

from __future__ import annotations

from dataclasses import dataclass

import mqtt5

from server.core.acks import Fingerprint
from server.mqtt.packet import pubacks
from server.mqtt.release import MOST_UNRELEASED, Release


@dataclass(frozen=True)
class Message:
    """A message as far as it is answered."""

    packet_id: int
    payload: bytes = b"p"
    topic: str = "t"
    qos: int = 2
    duplicate: bool = False

    @property
    def subscription_ids(self) -> list[int]:
        return []


def _packets(data: bytes) -> list[object]:
    packets: list[object] = []
    offset = 0
    while offset < len(data):
        packet, used = mqtt5.read(memoryview(data)[offset:])
        packets.append(packet)
        offset += used
    return packets


def _ids(data: bytes) -> list[int]:
    return [packet.packet_id for packet in _packets(data) if isinstance(packet, mqtt5.PubRecPacket)]


def test_pubrecs_go_out_in_order_and_only_so_many_at_once() -> None:
    session: set[int] = set()
    release = Release(session)
    for packet_id in range(1, MOST_UNRELEASED + 3):
        release.due(packet_id, Message(packet_id))
    assert _ids(release.pubrecs()) == list(range(1, MOST_UNRELEASED + 1))
    assert len(session) == MOST_UNRELEASED
    assert not release.is_empty
    assert [packet_id for packet_id, _ in release.withheld] == [MOST_UNRELEASED + 1, MOST_UNRELEASED + 2]
    assert release.withheld[0][1] == Fingerprint.of(Message(1))
    assert release.pubrecs() == b""
    release.pubcomp(1)
    assert _ids(release.pubrecs()) == [MOST_UNRELEASED + 1]
    release.pubcomp(2)
    assert _ids(release.pubrecs()) == [MOST_UNRELEASED + 2]
    assert release.is_empty


def test_a_pubrel_is_always_answered_and_an_unknown_id_said_to_be_unknown() -> None:
    release = Release({5})
    (known,) = _packets(release.pubcomp(5))
    (unknown,) = _packets(release.pubcomp(5))
    assert isinstance(known, mqtt5.PubCompPacket)
    assert isinstance(unknown, mqtt5.PubCompPacket)
    assert known.reason_code == mqtt5.PubCompReasonCode.SUCCESS
    assert unknown.reason_code == mqtt5.PubCompReasonCode.PACKET_ID_NOT_FOUND


def test_a_session_that_is_gone_has_no_ids_to_release() -> None:
    session = {1, 2}
    Release(session).forget()
    assert session == set()


def test_pubacks_are_what_the_codec_would_write_one_by_one() -> None:
    ids = [1, 2, 255, 256, 65_535, 3]
    assert pubacks(ids) == b"".join(mqtt5.PubAckPacket(packet_id).write() for packet_id in ids)
    assert pubacks([]) == b""
