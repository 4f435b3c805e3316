"""What only our own service can be asked: its API, its probes, its metrics."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any, Self

import httpx
from prometheus_client.parser import text_string_to_metric_families

from loadtest.measurement import MeasurementError

if TYPE_CHECKING:
    from prometheus_client.samples import Sample

START_TIMEOUT = 120.0
LAG = "mkf_event_loop_lag_seconds"
_POLL_SECONDS = 0.02


class ServiceApi:
    """The HTTP side of a running service."""

    def __init__(self, port: int) -> None:
        self._client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def wait_until_running(self, mappings: int) -> None:
        """Wait until so many mappings are running.

        Raises:
            MeasurementError: they aren't in time.
        """
        deadline = time.monotonic() + START_TIMEOUT
        while (running := self._running()) < mappings:
            if time.monotonic() > deadline:
                raise MeasurementError(f"only {running} of {mappings} mappings run after {START_TIMEOUT:g} s")
            time.sleep(0.2)

    def add(self, mapping: dict[str, Any]) -> float:
        """Add a mapping; returns the seconds until it is running."""
        began = time.monotonic()
        self._client.post("/api/v1/mappings", json=mapping).raise_for_status()
        while time.monotonic() - began < START_TIMEOUT:
            status = self._client.get(f"/api/v1/mappings/{mapping['name']}/status").raise_for_status().json()
            if status["state"] == "running":
                return time.monotonic() - began
            time.sleep(_POLL_SECONDS)
        raise MeasurementError(f"{mapping['name']} does not run after {START_TIMEOUT:g} s")

    def loop_lag(self) -> dict[float, float]:
        """How many turns of the event loop came at most so many seconds late; empty if it isn't measured."""
        return {float(each.labels["le"]): each.value for each in self._samples() if each.name == f"{LAG}_bucket"}

    def _running(self) -> int:
        try:
            samples = self._samples()
        except httpx.HTTPError:
            return 0  # not listening yet
        states = (each for each in samples if each.name == "mkf_mapping_state")
        return sum(int(each.value) for each in states if each.labels["state"] == "running")

    def _samples(self) -> list[Sample]:
        text = self._client.get("/metrics").raise_for_status().text
        return [sample for family in text_string_to_metric_families(text) for sample in family.samples]


def quantile(before: dict[float, float], after: dict[float, float], share: float) -> float | None:
    """The upper bound in which so large a share of a Prometheus histogram's new values lies; None if there are none."""
    grown = {bound: count - before.get(bound, 0.0) for bound, count in sorted(after.items())}
    total = max(grown.values(), default=0.0)
    if not total:
        return None
    return next(bound for bound, count in grown.items() if count >= share * total)


class ReadinessProbe:
    """Asks /readyz at once and every 50 ms; `seconds` are its answers' times."""

    EVERY = 0.05

    def __init__(self, port: int) -> None:
        self._url = f"http://127.0.0.1:{port}/readyz"
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._ask, name="readiness", daemon=True)
        self.seconds: list[float] = []

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _ask(self) -> None:
        with httpx.Client(timeout=30) as client:
            while True:
                began = time.monotonic()
                client.get(self._url).raise_for_status()
                self.seconds.append(time.monotonic() - began)
                if self._ended.wait(self.EVERY):
                    return
