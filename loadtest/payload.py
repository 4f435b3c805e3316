"""What a payload consists of: the message's number, the time it was sent, padding.

The number says which message it is and, with the workload, which MQTT topic it went to and what its place is there. So
whoever reads Kafka can tell what is lost, repeated or out of order without knowing what a forwarder makes the key.
"""

from __future__ import annotations

import base64
import json
import struct
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

# The number, -1 for a probe; and nanoseconds since 1970 by the publisher's clock.
HEADER = struct.Struct(">qq")
HEADER_BYTES = HEADER.size
PROBE = -1
# 16 bytes end inside a group of base64; the first 24 characters are 18 bytes.
_BASE64_OF_HEADER = 24


def probe() -> bytes:
    """A payload that only asks whether the forwarder forwards, and is not counted."""
    return HEADER.pack(PROBE, 0)


def headers(values: Sequence[bytes]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The numbers and the send times (ns) in the values of records, whether wrapped as JSON or not.

    Raises:
        ValueError: a value is none of ours.
    """
    # The first byte of a number is 0 (there are never 2^56 messages) or, in a probe, 255.
    joined = b"".join([(value if value[:1] != b"{" else _unwrapped(value))[:HEADER_BYTES] for value in values])
    if len(joined) != HEADER_BYTES * len(values):
        raise ValueError("a record's value is too short to be one of the messages that were sent")
    both = np.frombuffer(joined, dtype=">i8").reshape(-1, 2).astype(np.int64)
    return both[:, 0], both[:, 1]


def _unwrapped(value: bytes) -> bytes:
    text: str = json.loads(value)["payload"]
    return base64.b64decode(text[:_BASE64_OF_HEADER])
