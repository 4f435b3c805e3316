"""The librdkafka that confluent-kafka brings along, called directly."""

from __future__ import annotations

import ctypes
from pathlib import Path

import confluent_kafka


def load() -> ctypes.CDLL:
    """Open the library, as confluent-kafka's wheel bundles it."""
    site_packages = Path(confluent_kafka.__file__).parent.parent
    [library] = (site_packages / "confluent_kafka.libs").glob("librdkafka*")
    return ctypes.CDLL(str(library))
