"""What Kafka says of a batch, to be awaited."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from server.kafka.batch import RecordBatch
    from server.kafka.producer import Producer
    from server.kafka.sender import LeanProducer


def hand_over(
    producer: Producer | LeanProducer, batch: RecordBatch, topic: str, partition: int
) -> asyncio.Future[None]:
    """Hand the batch over; the future is done when Kafka has answered for it, and a second answer would fail."""
    future: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def answered(error: BaseException | None) -> None:
        if error is None:
            future.set_result(None)
        else:
            future.set_exception(error)

    producer.hand_over(batch, topic, partition, answered)
    return future


def send(producer: Producer | LeanProducer, topic: str, partition: int, *values: bytes) -> asyncio.Future[None]:
    """Send a batch of these values; the future is that of `hand_over`."""
    batch = producer.create_batch()
    for value in values:
        assert batch.append(timestamp=None, key=None, value=value) is not None
    future = hand_over(producer, batch, topic, partition)
    producer.flush()
    return future
