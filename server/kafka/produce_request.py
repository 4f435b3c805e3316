"""Produce requests and their answers as bytes, packed in one go.

aiokafka encodes and decodes field by field in Python, for all of Kafka's requests alike:
up to 16 µs of the 95 to 160 that a small request costs (docs/decisions/0018-sender.md).
This is the one request it sends all the time, in the last version that aiokafka knows (7: Kafka 2.1 and later;
https://kafka.apache.org/protocol, Produce). Older brokers get aiokafka's own.
"""

from __future__ import annotations

from dataclasses import dataclass
from struct import Struct
from typing import TYPE_CHECKING, Any, ClassVar

from aiokafka.protocol.produce import ProduceRequest, ProduceRequest_v7

if TYPE_CHECKING:
    from collections.abc import Sequence

_API_KEY, _VERSION = ProduceRequest_v7.API_KEY, ProduceRequest_v7.API_VERSION
_LENGTH = Struct(">h")
_COUNT = _CORRELATION_ID = _THROTTLE_TIME = Struct(">i")
_REQUEST_HEADER = Struct(">hhih")  # API key, version, correlation id, length of the client id
_REQUEST = Struct(">hhii")  # length of the transactional id (-1: none), acks, timeout, number of topics
_PARTITION = Struct(">ii")  # partition, length of the batch
# From so many bytes on a piece each for the kernel costs less than one more copy.
_WORTH_PIECES = 64 * 1024
_ANSWER = Struct(">ihqqq")  # partition, error code, offset, time of appending, offset at which the log starts


@dataclass(slots=True)
class Answer:
    """What Kafka says to each batch: `topics` has (topic, [(partition, error code, offset, time, log start)])."""

    topics: list[tuple[str, list[tuple[int, ...]]]]
    API_VERSION: ClassVar[int] = _VERSION

    @classmethod
    def decode(cls, frame: bytes) -> Answer:
        """Read the answer behind its header, the correlation id.

        Raises:
            struct.error, ValueError: it ends too early; aiokafka closes the connection then.
        """
        at = _CORRELATION_ID.size
        (topic_count,), at = _COUNT.unpack_from(frame, at), at + _COUNT.size
        topics = []
        for _ in range(topic_count):
            (length,) = _LENGTH.unpack_from(frame, at)
            begin = at + _LENGTH.size
            at = begin + length
            (partition_count,) = _COUNT.unpack_from(frame, at)
            end = at + _COUNT.size + partition_count * _ANSWER.size
            topics.append((frame[begin:at].decode(), list(_ANSWER.iter_unpack(frame[at + _COUNT.size : end]))))
            at = end
        _THROTTLE_TIME.unpack_from(frame, at)
        return cls(topics)


def correlation_id(frame: bytes) -> int:
    """Which request a frame answers.

    Raises:
        struct.error: it ends too early.
    """
    (found,) = _CORRELATION_ID.unpack_from(frame)
    return int(found)


@dataclass(slots=True)
class RequestBody:
    """A request: `topics` has (topic, [(partition, batch)])."""

    acks: int
    timeout_ms: int
    topics: Sequence[tuple[str, Sequence[tuple[int, Any]]]]
    deadline: float = 0.0  # of its answer, by the event loop's clock; 0 until it is sent

    def pieces(self, correlation_id: int, client_id: str) -> list[bytes | bytearray]:
        """What goes over the wire, its length and its header included; if it is large, without copying the batches."""
        name = client_id.encode()
        pieces: list[Any] = [
            _REQUEST_HEADER.pack(_API_KEY, _VERSION, correlation_id, len(name)),
            name,
            _REQUEST.pack(-1, self.acks, self.timeout_ms, len(self.topics)),
        ]
        for topic, batches in self.topics:
            name = topic.encode()
            pieces += (_LENGTH.pack(len(name)), name, _COUNT.pack(len(batches)))
            for partition, batch in batches:
                pieces += (_PARTITION.pack(partition, len(batch)), batch)
        size = sum(map(len, pieces))
        pieces.insert(0, _COUNT.pack(size))
        return pieces if size >= _WORTH_PIECES else [b"".join(pieces)]


class Request(ProduceRequest):  # type: ignore[misc]
    """A request without a transaction, before it is known which version the broker speaks."""

    def __init__(self, acks: int, timeout_ms: int, topics: list[tuple[str, list[tuple[int, Any]]]]) -> None:
        super().__init__(None, acks, timeout_ms, topics)

    def prepare(self, versions: dict[int, tuple[int, int]]) -> Any:
        """The request for a broker that speaks these versions (least and highest) of each API."""
        least, highest = versions.get(_API_KEY, (0, -1))
        if least <= _VERSION <= highest:
            return RequestBody(self._required_acks, self._timeout, self._topics)
        return super().prepare(versions)
