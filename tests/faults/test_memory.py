"""With Kafka stopped and publishers without end, the service keeps to its budgets for a minute (design.md, 6)."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from tests.faults.memory import MAPPINGS, PAYLOADS, QOS, memory_run

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.timeout(480)  # a minute by design, after four services with up to 200 mappings each have started
@pytest.mark.parametrize("qos", QOS)
@pytest.mark.parametrize("mappings", [pytest.param(n, marks=[pytest.mark.alone] * (n > 1)) for n in MAPPINGS])
async def test_without_kafka_memory_stays_within_the_budgets_whatever_the_payload(
    tmp_path: Path, qos: int, mappings: int
) -> None:
    """A service for each payload, all at once: each has a memory of its own."""
    peaks = await asyncio.gather(
        *(
            memory_run(tmp_path / str(payload), payload=payload, qos=qos, mappings=mappings, seconds=60.0)
            for payload in PAYLOADS
        )
    )
    for payload, peak in zip(PAYLOADS, peaks, strict=True):
        assert peak.received > 0
        assert peak.private <= peak.allowed, f"{payload} bytes: {peak}"
