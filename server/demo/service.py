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
# A drain takes 15 s at most.
END_SESSIONS_TIMEOUT = 20.0
POLL = 0.1
CLIENT_ID = "MKF_DEMO_CLIENT_ID"


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
    reasons: tuple[str, ...] = ()


def plan() -> Plan:
    """Read $CONFIG_FILE, by default the config.yaml of the repository.

    Raises:
        DemoError: it is not a file for the demo.
    """
    path = Path(os.environ.get("CONFIG_FILE") or REPOSITORY / "config.yaml")
    try:
        document = yaml.safe_load(path.read_text())
        forwarding = document["forwarding"]
        names = tuple(entry["name"] for entry in forwarding)
        topics = tuple(sorted({entry["kafka"]["topic"] for entry in forwarding}))
        sources = (document.get("mqtt") or {}, *(entry.get("mqtt") or {} for entry in forwarding))
        client_ids = [str(source["client_id"]) for source in sources if source.get("client_id")]
    except (OSError, yaml.YAMLError, KeyError, TypeError, AttributeError) as error:
        raise DemoError(f"the demo needs a configuration file with mappings; {path}: {error!r}") from error
    if not all(f"${{{CLIENT_ID}" in client_id for client_id in client_ids):
        raise DemoError(
            f"with the client ids of {path} the demo would take over the sessions of a service that runs with it;\n"
            f'write client_id: "${{{CLIENT_ID}:-the-id-otherwise}}" there'
        )
    return Plan(path, names, topics)


def mapping_path(mapping: str) -> str:
    """Return where the API has a mapping."""
    return f"/api/v1/mappings/{quote(mapping, safe='')}"


def status_path(mapping: str) -> str:
    """Return where the API tells the status of a mapping."""
    return f"{mapping_path(mapping)}/status"


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
            found = [await self._get(status_path(name)) for name in mappings]
        except OSError:  # also what urllib makes of HTTP errors
            return None
        return Forwarded(
            received=sum(status["counters"]["received"] for status in found),
            delivered=sum(status["counters"]["delivered"] for status in found),
            states={status["name"]: status["state"] for status in found},
            reasons=tuple(dict.fromkeys(status["reason"] for status in found if status["reason"])),
        )

    async def end_sessions(self) -> bool:
        """Delete all mappings, so that the service ends their sessions at the broker; returns whether it could."""
        try:
            async with asyncio.timeout(END_SESSIONS_TIMEOUT):
                told = len(self._told())
                open_sessions = set()
                for item in (await self._get("/api/v1/mappings?limit=500"))["items"]:
                    await self._delete(mapping_path(item["mapping"]["name"]))
                    if item["status"]["mqtt"]["durable"]:
                        open_sessions.add(item["status"]["mqtt"]["client_id"])
                while open_sessions:
                    lines = self._told()[told:].splitlines()
                    if any("session_not_ended_yet" in line for line in lines):
                        return False  # the broker is away, and nobody waits for it any more
                    ended = [line for line in lines if "session_ended" in line]
                    open_sessions = {each for each in open_sessions if not any(each in line for line in ended)}
                    await asyncio.sleep(POLL)
        except (OSError, TimeoutError):
            return False
        return True

    async def until_ready(self) -> None:
        """Wait until it says that it is ready."""
        deadline = time.monotonic() + START_TIMEOUT
        while True:
            try:
                await self._get("/readyz")
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

    def _told(self) -> str:
        return self.log.read_text(errors="replace")

    async def _get(self, path: str) -> Any:
        return json.loads(await asyncio.to_thread(self._request, "GET", path))

    async def _delete(self, path: str) -> None:
        await asyncio.to_thread(self._request, "DELETE", path)

    def _request(self, method: str, path: str) -> bytes:
        request = urllib.request.Request(self._base + path, method=method)  # noqa: S310 - always http
        with urllib.request.urlopen(request, timeout=REQUEST_TIMEOUT) as response:  # noqa: S310 - the same
            content: bytes = response.read()
        return content


@asynccontextmanager
async def service(
    folder: Path, config: Path, mqtt: Address, kafka: Address, *, client_id: str
) -> AsyncIterator[Service]:
    """Run the service between these brokers, with a database that is thrown away; `until_ready` waits for it."""
    port = _port()
    log = folder / "service.log"
    environment = {
        # Its store is thrown away and it listens on loopback: the demo needs no token and no TLS, nor who looks at it.
        **{name: value for name, value in os.environ.items() if not name.startswith(("MKF_ADMIN_TOKEN", "MKF_TLS_"))},
        "CONFIG_FILE": str(config),
        "MKF_PORT": str(port),
        "MKF_LOG_LEVEL": "info",  # it says there that sessions are ended
        "MKF_DATABASE_URL": f"sqlite:///{folder / 'demo.db'}",
        CLIENT_ID: client_id,
        "MKF_DEMO_MQTT_HOST": mqtt.host,
        "MKF_DEMO_MQTT_PORT": str(mqtt.port),
        "MKF_DEMO_KAFKA_HOST": kafka.host,
        "MKF_DEMO_KAFKA_PORT": str(kafka.port),
    }
    async with python_module("server.cli", "serve", log=log, grace=EXIT_TIMEOUT, env=environment) as process:
        yield Service(process, port, log)


def _port() -> int:
    if chosen := os.environ.get("MKF_PORT"):
        if not chosen.isdigit():
            raise DemoError(f"MKF_PORT must be a number, not {chosen!r}")
        return int(chosen)
    return DEFAULT_PORT if is_free(DEFAULT_PORT) else free_port()
