"""The service of the demo: `mkf serve` as a process, and its API as anybody would use it."""

from __future__ import annotations

import asyncio
import json
import os
import time
import urllib.request
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import yaml

from server.demo.children import DemoError, free_port, is_free, python_module, tail

if TYPE_CHECKING:
    from asyncio.subprocess import Process
    from collections.abc import AsyncIterator

    from server.demo.brokers import Address

REPOSITORY = Path(__file__).parents[2]
DEFAULT_PORT = 8080
START_TIMEOUT = 30.0
# The service promises to end within 25 s.
EXIT_TIMEOUT = 25.0
REQUEST_TIMEOUT = 2.0
POLL = 0.1


@dataclass(frozen=True, slots=True)
class Plan:
    """What the configuration file forwards: the demo counts these mappings and reads these Kafka topics."""

    config: Path
    mappings: tuple[str, ...]
    topics: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Forwarded:
    """The sum over all mappings, as their status says."""

    received: int
    delivered: int
    states: dict[str, str]


def plan() -> Plan:
    """Read $CONFIG_FILE, by default the config.yaml of the repository."""
    path = Path(os.environ.get("CONFIG_FILE") or REPOSITORY / "config.yaml")
    try:
        forwarding = yaml.safe_load(path.read_text())["forwarding"]
        names = tuple(entry["name"] for entry in forwarding)
        topics = tuple(sorted({entry["kafka"]["topic"] for entry in forwarding}))
    except (OSError, yaml.YAMLError, KeyError, TypeError) as error:
        raise DemoError(f"the demo needs a configuration file with mappings; {path}: {error!r}") from error
    return Plan(path, names, topics)


def status_path(mapping: str) -> str:
    """Return where the API tells the status of a mapping."""
    return f"/api/v1/mappings/{quote(mapping, safe='')}/status"


class Service:
    """The running service."""

    def __init__(self, process: Process, port: int, log: Path) -> None:
        self.url = f"http://localhost:{port}"
        self._base = f"http://127.0.0.1:{port}"
        self._process = process
        self.log = log

    async def forwarded(self, mappings: tuple[str, ...]) -> Forwarded | None:
        """Ask the status of the mappings; None while it can't be told."""
        try:
            found = [await asyncio.to_thread(self._get, status_path(name)) for name in mappings]
        except OSError:  # also what urllib makes of HTTP errors
            return None
        return Forwarded(
            received=sum(status["counters"]["received"] for status in found),
            delivered=sum(status["counters"]["delivered"] for status in found),
            states={status["name"]: status["state"] for status in found},
        )

    async def until_ready(self) -> None:
        """Wait until it says that it is ready."""
        deadline = time.monotonic() + START_TIMEOUT
        while True:
            try:
                await asyncio.to_thread(self._get, "/readyz")
            except OSError as error:
                if self._process.returncode is not None:
                    raise DemoError(f"the service does not start:\n{tail(self.log)}") from None
                if time.monotonic() > deadline:
                    raise DemoError(f"the service is not ready ({error}):\n{tail(self.log)}") from None
                await asyncio.sleep(POLL)
            else:
                return

    async def until_it_ends(self) -> None:
        """Return never: a service that ends by itself is an error."""
        code = await self._process.wait()
        raise DemoError(f"the service ended with {code}:\n{tail(self.log)}")

    def _get(self, path: str) -> Any:
        with urllib.request.urlopen(self._base + path, timeout=REQUEST_TIMEOUT) as response:  # noqa: S310 - always http
            return json.load(response)


@asynccontextmanager
async def service(folder: Path, config: Path, mqtt: Address, kafka: Address) -> AsyncIterator[Service]:
    """Run the service between these brokers, with a database that is thrown away."""
    port = _port()
    log = folder / "service.log"
    environment = {
        **os.environ,
        "CONFIG_FILE": str(config),
        "MKF_PORT": str(port),
        "MKF_DATABASE_URL": f"sqlite:///{folder / 'demo.db'}",
        "MKF_DEMO_MQTT_HOST": mqtt.host,
        "MKF_DEMO_MQTT_PORT": str(mqtt.port),
        "MKF_DEMO_KAFKA_HOST": kafka.host,
        "MKF_DEMO_KAFKA_PORT": str(kafka.port),
    }
    async with python_module("server.cli", "serve", log=log, grace=EXIT_TIMEOUT, env=environment) as process:
        forwarder = Service(process, port, log)
        await forwarder.until_ready()
        yield forwarder


def _port() -> int:
    if chosen := os.environ.get("MKF_PORT"):
        if not chosen.isdigit():
            raise DemoError(f"MKF_PORT must be a number, not {chosen!r}")
        return int(chosen)
    return DEFAULT_PORT if is_free(DEFAULT_PORT) else free_port()
