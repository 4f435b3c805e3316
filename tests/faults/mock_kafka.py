"""A Kafka that answers with errors on request: librdkafka's mock cluster, with its injection of errors.

It speaks the real protocol over TCP, keeps what it confirmed and gives it back to a consumer, but checks nothing: no
sequence numbers, no sizes, no keys. It runs in threads of librdkafka's own, outside the interpreter.
"""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Self

from tests import librdkafka
from tests.brokers import KafkaCluster

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_PRODUCE = 0
_PRODUCER = 0  # RD_KAFKA_PRODUCER
_MANY = 10_000
_ERROR_BYTES = 512


def _bound() -> ctypes.CDLL:
    """The library with the signatures of what is used here (rdkafka.h, rdkafka_mock.h)."""
    library = librdkafka.load()
    pointer, text, number, code = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int, ctypes.c_int16
    signatures: dict[str, tuple[type | None, list[type]]] = {
        "rd_kafka_conf_new": (pointer, []),
        "rd_kafka_conf_set": (number, [pointer, text, text, text, ctypes.c_size_t]),
        "rd_kafka_new": (pointer, [number, pointer, text, ctypes.c_size_t]),
        "rd_kafka_destroy": (None, [pointer]),
        "rd_kafka_mock_cluster_new": (pointer, [pointer, number]),
        "rd_kafka_mock_cluster_destroy": (None, [pointer]),
        "rd_kafka_mock_cluster_bootstraps": (text, [pointer]),
        "rd_kafka_mock_topic_create": (number, [pointer, text, number, number]),
        "rd_kafka_mock_push_request_errors_array": (
            None,
            [pointer, code, ctypes.c_size_t, ctypes.POINTER(ctypes.c_int)],
        ),
        "rd_kafka_mock_partition_set_leader": (number, [pointer, text, ctypes.c_int32, ctypes.c_int32]),
        "rd_kafka_mock_clear_request_errors": (None, [pointer, code]),
        # Variadic: behind these come as many codes as the last of them says.
        "rd_kafka_mock_partition_push_request_errors": (
            number,
            [pointer, text, ctypes.c_int32, code, ctypes.c_size_t],
        ),
    }
    for name, (result, arguments) in signatures.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library


class MockKafka(KafkaCluster):
    """A mock cluster of one broker, for the length of a `with` block."""

    def __init__(self) -> None:
        super().__init__()
        self._library = _bound()
        self._client = self._cluster = 0

    def __enter__(self) -> Self:
        library, error = self._library, ctypes.create_string_buffer(_ERROR_BYTES)
        settings = library.rd_kafka_conf_new()
        # The client that a mock cluster needs has no servers to connect to, and would say so.
        library.rd_kafka_conf_set(settings, b"log_level", b"0", error, _ERROR_BYTES)
        self._client = library.rd_kafka_new(_PRODUCER, settings, error, _ERROR_BYTES)
        if not self._client:
            raise RuntimeError(error.value.decode())
        self._cluster = library.rd_kafka_mock_cluster_new(self._client, 1)
        self._bootstrap = library.rd_kafka_mock_cluster_bootstraps(self._cluster).decode()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """End it for good, with all it holds; its port is closed then."""
        client, self._client = self._client, 0
        if client:
            self._library.rd_kafka_mock_cluster_destroy(self._cluster)
            self._library.rd_kafka_destroy(client)

    async def create_topic(
        self,
        name: str,
        partitions: int = 1,
        config: Mapping[str, str] | None = None,
        *,
        replicas: Sequence[Sequence[int]] | None = None,
    ) -> str:
        """Create a topic; the mock cluster has no settings for it."""
        assert not config
        assert not replicas
        code = self._library.rd_kafka_mock_topic_create(self._cluster, name.encode(), partitions, 1)
        assert not code, f"error {code}"
        return name

    def refuse(self, code: int, times: int = _MANY) -> None:
        """Answer the next so many produce requests with this error for every partition in them."""
        codes = (ctypes.c_int * times)(*[code] * times)
        self._library.rd_kafka_mock_push_request_errors_array(self._cluster, _PRODUCE, times, codes)

    def refuse_partition(self, topic: str, partition: int, code: int, times: int) -> None:
        """Answer the next so many batches for this partition with this error."""
        failed = self._library.rd_kafka_mock_partition_push_request_errors(
            self._cluster, topic.encode(), partition, _PRODUCE, times, *[code] * times
        )
        assert not failed, f"error {failed}"

    def take_leader(self, topic: str, partition: int) -> None:
        """Let this partition have no leader."""
        failed = self._library.rd_kafka_mock_partition_set_leader(self._cluster, topic.encode(), partition, -1)
        assert not failed, f"error {failed}"

    def accept(self) -> None:
        """Refuse nothing more, but for what `refuse_partition` said."""
        self._library.rd_kafka_mock_clear_request_errors(self._cluster, _PRODUCE)
