"""How much the tests of this folder try: a little in `make test`, all of it in `make security`.

`MKF_SECURITY=long` is the one switch, and the make target sets it. What a run tried is drawn from `--security-seed`
(MQTT) and `--hypothesis-seed` (files and requests), which pytest prints: with the same seeds it tries the same again.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

_VARIABLE = "MKF_SECURITY"


@dataclass(frozen=True, slots=True)
class Extent:
    """The number of examples."""

    api_cases: int  # for each operation
    yaml_files: int
    mqtt_packets: int  # mutated ones, of each version of the protocol
    largest_payload: int  # bytes


SHORT = Extent(api_cases=4, yaml_files=200, mqtt_packets=2_000, largest_payload=8_000_000)
LONG = Extent(api_cases=200, yaml_files=10_000, mqtt_packets=100_000, largest_payload=2**28)


def extent() -> Extent:
    """What this run is asked for.

    Raises:
        ValueError: MKF_SECURITY is neither `short` nor `long`.
    """
    asked = os.environ.get(_VARIABLE) or "short"
    try:
        return {"short": SHORT, "long": LONG}[asked]
    except KeyError:
        raise ValueError(f"{_VARIABLE} must be short or long, not {asked!r}") from None


EXTENT = extent()
