"""A batch of records for one partition: filled without a detour, and answered for once.

aiokafka takes each record through Python before its C code encodes it: 0.5 µs, of which the encoding takes 0.2
(docs/decisions/0018-sender.md). Here records go there at once, and the batch hears at the end how many they are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

from aiokafka.producer.message_accumulator import BatchBuilder

if TYPE_CHECKING:
    from collections.abc import Callable

    from aiokafka.structs import TopicPartition

    from server.core.record import Headers

# (its number in the batch, timestamp in ms, key, value, headers), by position; the answer is None if it does not fit.
Encode: TypeAlias = "Callable[[int, int, bytes | None, bytes, Headers], object | None]"
# Hears what Kafka says of a batch: None that it has it, or why not. It is called where the answer is read.
Answered: TypeAlias = "Callable[[BaseException | None], None]"


class RecordBatch(BatchBuilder):  # type: ignore[misc] # aiokafka has no types
    """A batch of at most so many bytes before compression, and how to compress it; the first record may be larger.

    Once it is handed over it is for the partition `at`, and `answered` is called once: with None when Kafka has it.
    `numbered` says that it has its sequence number, which it keeps however often it is sent.
    """

    at: TopicPartition
    answered: Answered
    give_up_at: float  # by time.monotonic()
    numbered = False
    over = False  # it was answered for

    @property
    def encode(self) -> Encode:
        """Takes one record after another, beginning with number 0; call `filled` behind the last."""
        encode: Encode = self._builder.append
        return encode

    def filled(self, records: int) -> None:
        """Note how many records are in it: sequence numbers go on by as many."""
        self._relative_offset = records

    def done(self, *_: Any) -> None:
        """Kafka has it. What it says beside that (offset and times) nobody asks for."""
        self._answer(None)

    def failure(self, exception: BaseException) -> None:
        """Kafka has refused it for good, or nobody knows what became of it."""
        self._answer(exception)

    def _answer(self, error: BaseException | None) -> None:
        if not self.over:
            self.over = True
            self.answered(error)
