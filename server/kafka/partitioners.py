"""From a record's key to its partition, as librdkafka and the Java client do it.

A key must stay in the partition where the seed, or any other producer of the topic, puts it: consumers join and
order by partition. The `_random` names differ only for records without a key, which the caller places; an empty
key is hashed here also under `consistent_random`, where librdkafka would spread it and lose its order.
"""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING

from aiokafka.partitioner import murmur2

if TYPE_CHECKING:
    from collections.abc import Callable

_FNV_PRIME = 0x01000193
_FNV_OFFSET = 0x811C9DC5
_UINT32 = 0xFFFF_FFFF


def _by_murmur2(key: bytes, partitions: int) -> int:
    hashed: int = murmur2(key)
    return (hashed & 0x7FFF_FFFF) % partitions


def _by_crc32(key: bytes, partitions: int) -> int:
    return zlib.crc32(key) % partitions


def _by_fnv1a(key: bytes, partitions: int) -> int:
    hashed = _FNV_OFFSET
    for byte in key:
        hashed = ((hashed ^ byte) * _FNV_PRIME) & _UINT32
    # librdkafka holds the hash in a signed int and takes its absolute value, as Sarama does.
    signed = hashed - (1 << 32) if hashed & 0x8000_0000 else hashed
    return abs(signed) % partitions


_PARTITIONERS: dict[str, Callable[[bytes, int], int]] = {
    "murmur2": _by_murmur2,
    "murmur2_random": _by_murmur2,
    "consistent": _by_crc32,
    "consistent_random": _by_crc32,
    "fnv1a": _by_fnv1a,
    "fnv1a_random": _by_fnv1a,
}


def partitioner(name: str) -> Callable[[bytes, int], int]:
    """Look up the function from a key and the topic's number of partitions to a partition (from 0).

    Raises:
        KeyError: no partitioner has this librdkafka name; core/kafka_options.py lets no such name through.
    """
    return _PARTITIONERS[name]
