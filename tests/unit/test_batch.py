"""A batch filled without aiokafka's detour is the batch that aiokafka would have made."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aiokafka.producer.message_accumulator import BatchBuilder
from hypothesis import given
from hypothesis import strategies as st

from server.kafka.batch import RecordBatch

if TYPE_CHECKING:
    from server.core.record import Headers

SIZE = 2_000
_HEADERS = st.lists(st.tuples(st.text(max_size=10), st.binary(max_size=10)), max_size=3)
_RECORDS = st.lists(st.tuples(st.none() | st.binary(max_size=20), st.binary(max_size=300), _HEADERS), min_size=1)


@given(records=_RECORDS, compression=st.sampled_from([0, 1]))
def test_it_has_the_bytes_the_size_and_the_count_of_aiokafkas(
    records: list[tuple[bytes | None, bytes, Headers]], compression: int
) -> None:
    """As many records as fit, and the same bytes whether compressed (1: gzip) or not."""
    theirs, ours = BatchBuilder(SIZE, compression), RecordBatch(SIZE, compression)
    encode, taken = ours.encode, 0
    for key, value, headers in records:
        expected = theirs.append(timestamp=7, key=key, value=value, headers=headers)
        if encode(taken, 7, key, value, headers) is None:
            assert expected is None
            break
        assert expected is not None
        taken += 1
    ours.filled(taken)
    assert ours.record_count() == theirs.record_count() == taken
    assert ours.size() == theirs.size()
    assert bytes(ours._build()) == bytes(theirs._build())
