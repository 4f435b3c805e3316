"""The report as a document for programs: everything that was measured, as plain data for JSON."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from loadtest.contest import ratios
from loadtest.limits import cores, limits
from loadtest.reader import BIN_NS
from loadtest.terminal import RATIOS

if TYPE_CHECKING:
    from loadtest.contest import Results
    from loadtest.measurement import Measurement


def document(results: Results) -> dict[str, Any]:
    """All measurements by forwarder, and the ratios of the first to every other. Units are in the names."""
    (first, ours), *others = results.items()
    return {
        "forwarders": {name: [_measurement(each) for each in found] for name, found in results.items()},
        "ratios": {
            f"{first} / {name}": {
                what: asdict(found)
                for what, figure in RATIOS.items()
                if (found := ratios(ours, theirs, figure)) is not None
            }
            for name, theirs in others
        },
    }


def _measurement(found: Measurement) -> dict[str, Any]:
    return {
        "mode": found.mode,
        "seconds": found.seconds,
        "seconds_until_first": found.first_seconds,
        "messages_per_second": found.rate,
        "verdict": asdict(found.verdict) | {"good": found.verdict.good},
        "latency_ms": found.latencies.percentiles(),
        "latency_hdr": found.latencies.encoded(),
        "cpu_micros_per_message": found.cpu_micros,
        "cpu_cores": found.cores,
        "cpu_cores_by_process": cores(found),
        "limits": limits(found),
        "peak_bytes": found.peak,
        "left_unacknowledged": found.unacknowledged,
        "samples": [asdict(sample) for sample in found.samples],
        "arrivals": [
            {
                "at": (number * BIN_NS - found.began_ns) / 1e9,
                "messages": interval.messages,
                "p50_ms": interval.latencies.percentile(50),
                "p99_ms": interval.latencies.percentile(99),
            }
            for number, interval in sorted(found.intervals.items())
        ],
    }
