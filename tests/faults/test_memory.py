"""With Kafka stopped and publishers without end, the service keeps to its budgets for a minute (design.md, 6)."""

from __future__ import annotations

import asyncio
import itertools
from typing import TYPE_CHECKING

import pytest

from tests.faults.memory import MAPPINGS, PAYLOADS, QOS, memory_run

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.timeout(480)  # a minute by design, after eight services with up to 200 mappings each have started
@pytest.mark.parametrize("mappings", [pytest.param(n, marks=[pytest.mark.alone] * (n > 1)) for n in MAPPINGS])
async def test_without_kafka_memory_stays_within_the_budgets_whatever_payload_and_qos(
    tmp_path: Path, mappings: int
) -> None:
    """A service for each payload and QoS, all at once: each has a memory of its own."""
    kinds = list(itertools.product(PAYLOADS, QOS))
    peaks = await asyncio.gather(
        *(
            memory_run(tmp_path / f"{payload}-{qos}", payload=payload, qos=qos, mappings=mappings, seconds=60.0)
            for payload, qos in kinds
        )
    )
    for (payload, qos), peak in zip(kinds, peaks, strict=True):
        assert peak.received > 0
        assert peak.private <= peak.allowed, f"{payload} bytes at QoS {qos}: {peak}"
