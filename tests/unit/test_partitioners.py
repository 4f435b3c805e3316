"""Partitioners, compared with librdkafka itself."""

from __future__ import annotations

import ctypes

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.core.librdkafka_values import partitioner as configured
from server.kafka.partitioners import partitioner
from tests import librdkafka

_LIBRARY = librdkafka.load()


def _librdkafkas(name: str, key: bytes, partitions: int) -> int:
    function = getattr(_LIBRARY, f"rd_kafka_msg_partitioner_{name}")
    function.restype = ctypes.c_int32
    function.argtypes = [
        ctypes.c_void_p,
        ctypes.c_char_p,
        ctypes.c_size_t,
        ctypes.c_int32,
        ctypes.c_void_p,
        ctypes.c_void_p,
    ]
    found: int = function(None, key, len(key), partitions, None, None)
    return found


@pytest.mark.parametrize("name", ["murmur2", "consistent", "fnv1a"])
@given(key=st.binary(), partitions=st.integers(1, 10_000))
def test_a_key_goes_where_librdkafka_puts_it(name: str, key: bytes, partitions: int) -> None:
    assert partitioner(name)(key, partitions) == _librdkafkas(name, key, partitions)
    assert partitioner(f"{name}_random")(key, partitions) == _librdkafkas(name, key, partitions)


@pytest.mark.parametrize(
    "name", ["murmur2", "murmur2_random", "consistent", "consistent_random", "fnv1a", "fnv1a_random"]
)
def test_every_partitioner_that_can_be_configured_exists(name: str) -> None:
    assert partitioner(configured(name))(b"key", 1) == 0


def test_an_unknown_partitioner_is_refused() -> None:
    with pytest.raises(KeyError):
        partitioner("random")
