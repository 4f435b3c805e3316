"""With Kafka stopped and publishers without end, the service keeps to its budgets for a minute (design.md, 6)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.faults.memory import memory_run

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("payload", "qos", "mappings"),
    [
        (0, 1, 1),
        (1_000, 0, 1),
        (1_000_000, 1, 200),
        (0, 1, 200),
    ],
)
async def test_without_kafka_memory_stays_within_the_budgets(
    tmp_path: Path, payload: int, qos: int, mappings: int
) -> None:
    peak = await memory_run(tmp_path, payload=payload, qos=qos, mappings=mappings, seconds=60.0)
    assert peak.received > 0
    assert peak.private <= peak.allowed, peak
