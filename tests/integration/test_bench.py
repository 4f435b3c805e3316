"""The benchmark itself, with few messages: that it measures, not what."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from loadtest.bench import main
from loadtest.drain import Load, Place, drain
from loadtest.figures import MeasurementError
from loadtest.forwarders import Command, Task, one_by_one, plain, service

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.brokers import Kafka, Mosquitto

LOAD = Load(messages=2_000, size=100)


def test_the_benchmark_ends_well_if_any_ratio_is_enough(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--messages", "2000", "--plain-messages", "500", "--rounds", "1", "--at-least"]
    assert main([*arguments, "0"]) == 0
    said = capsys.readouterr().out
    assert "mkf serve" in said
    assert "times the rate of the plain loop" in said


async def test_what_forwards_everything_is_measured_and_what_does_not_is_refused(
    own_mosquitto: Callable[..., Mosquitto], own_kafka: Callable[..., Kafka], tmp_path: Path
) -> None:
    place = Place(own_mosquitto(persistence=False), own_kafka(), tmp_path / "bench")
    for forwarder in (service, plain, one_by_one):
        found = await drain(forwarder, place, LOAD)
        assert (found.messages, found.repeats, found.unacknowledged) == (2_000, 0, 0)
        assert found.rate > 0
        assert 0 < found.cpu_micros < 100_000
        assert 10_000_000 < found.peak_bytes < 500_000_000

    def broken(task: Task) -> Command:
        return Command(task.name, ["false"], {})

    with pytest.raises(MeasurementError, match="forwards nothing"):
        await drain(broken, place, LOAD)
