"""The service as its users run it: a process with a configuration file, a database, an API and signals."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import quote

import httpx
import yaml

from tests.brokers.process import BrokerError, Child, free_port
from tests.forker import COVERAGE
from tests.prefork import PREFORK

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping, Sequence

    from tests.brokers import KafkaCluster, Mosquitto, MqttBroker

READY_TIMEOUT = 30.0
# The promise is 25 s from SIGTERM to the end.
EXIT_TIMEOUT = 25.0
STATE_TIMEOUT = 30.0
# `env` for a service whose coverage is not measured: that takes time and memory, and kills lose it anyway.
UNMEASURED = dict.fromkeys(COVERAGE, "")
_ANONYMOUS = re.compile(r"^RssAnon:\s*(\d+) kB$", re.MULTILINE)


class Service(Child):
    """`mkf serve` in a folder of its own: `async with Service(...) as service: await service.wait_ready()`.

    `forwarding` is the list of mappings for the configuration file; `mqtt`, `kafka` and `env` add to the defaults.
    `command` is another than this source tree's, which is forked from a process that has imported it (prefork.py).
    Starting it again after `sigterm()` or `kill9()` keeps the database, the port and the client id.
    """

    def __init__(
        self,
        folder: Path,
        *,
        mqtt_broker: MqttBroker | Mosquitto,
        kafka_broker: KafkaCluster,
        forwarding: Sequence[Mapping[str, Any]] = (),
        client_id: str = "mkf-test",
        mqtt: Mapping[str, Any] | None = None,
        kafka: Mapping[str, Any] | None = None,
        env: Mapping[str, str] | None = None,
        command: Sequence[str] | None = None,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        super().__init__("service", folder / "service.log")
        self.folder = folder
        self.port = free_port()
        self._env = dict(env or {})
        self._command = command
        self._api: httpx.AsyncClient | None = None
        self.config: dict[str, Any] = {
            "mqtt": {
                "host": mqtt_broker.host,
                "port": mqtt_broker.port,
                "client_id": client_id,
                **(mqtt or {}),
            },
            "kafka": {
                "bootstrap_server": kafka_broker.host,
                "port": kafka_broker.port,
                **(kafka or {}),
            },
            "forwarding": [dict(entry) for entry in forwarding],
        }

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def api(self) -> httpx.AsyncClient:
        """HTTP client for the whole server; the API is under /api/v1."""
        if self._api is None:
            self._api = httpx.AsyncClient(base_url=self.url, timeout=10)
        return self._api

    async def __aenter__(self) -> Self:
        self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        # SIGTERM first, so that coverage is written; a test that wants more of the exit asks `sigterm()` itself.
        try:
            if self.running:
                await asyncio.to_thread(self.terminate, EXIT_TIMEOUT)
        finally:
            if self._api is not None:
                await self._api.aclose()
                self._api = None

    def private_memory(self) -> int:
        """The memory that is its own (bytes): the pages of shared libraries are not (docs/decisions/0010).

        Anonymous pages, also those it has in common with the process it was forked from.

        Raises:
            ProcessLookupError: it has ended.
        """
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            found = _ANONYMOUS.search(Path(f"/proc/{self.pid}/status").read_text())
            if found is not None:
                return int(found[1]) * 1024
        raise ProcessLookupError(f"process {self.pid} has ended, and has no memory any more")

    def start(self, env: Mapping[str, str] | None = None) -> None:
        """Write the configuration as it is now in `config`, and start; `wait_ready` waits."""
        path = self.folder / "config.yaml"
        path.write_text(yaml.safe_dump(self.config, sort_keys=False))
        environment = {
            **os.environ,
            "CONFIG_FILE": str(path),
            "MKF_HOST": "127.0.0.1",
            "MKF_PORT": str(self.port),
            "MKF_DATABASE_URL": f"sqlite:///{self.folder / 'mkf.db'}",
            **self._env,
            **(env or {}),
        }
        if self._command is not None:
            self.spawn([*self._command, "serve"], env=environment)
        else:
            self.started_by(lambda: PREFORK.start(["serve"], environment, self.log_path))

    async def wait_ready(self, timeout: float = READY_TIMEOUT) -> None:
        """Wait until /readyz says 200."""
        async with self._explained(f"ready within {timeout:g} s", timeout):
            while True:
                try:
                    if (await self.api.get("/readyz")).status_code == httpx.codes.OK:
                        return
                except httpx.TransportError:
                    self._must_run("ready")
                await asyncio.sleep(0.05)

    async def status(self, name: str) -> dict[str, Any]:
        """Return the status of a mapping."""
        response = await self.api.get(f"/api/v1/mappings/{quote(name, safe='')}/status")
        response.raise_for_status()
        status: dict[str, Any] = response.json()
        return status

    async def wait_state(self, name: str, state: str = "running", timeout: float = STATE_TIMEOUT) -> dict[str, Any]:
        """Wait until the mapping is in that state, return the status."""
        return await self.wait_status(name, lambda status: status["state"] == state, f"{name} {state}", timeout)

    async def wait_status(
        self, name: str, wanted: Callable[[dict[str, Any]], bool], what: str, timeout: float = STATE_TIMEOUT
    ) -> dict[str, Any]:
        """Wait until the mapping's status satisfies the condition, return it."""
        status: dict[str, Any] = {}
        async with self._explained(f"{what} within {timeout:g} s", timeout, lambda: f"the last status is {status}"):
            while True:
                try:
                    status = await self.status(name)
                    if wanted(status):
                        return status
                except httpx.HTTPError as error:
                    self._must_run(what)
                    status = {"error": str(error)}
                await asyncio.sleep(0.05)

    async def sigterm(self, timeout: float = EXIT_TIMEOUT) -> int:
        """SIGTERM, and the exit code."""
        return await asyncio.to_thread(self.terminate, timeout)

    def kill9(self) -> None:
        """SIGKILL: as if the machine lost power, except that the disk survives."""
        self.kill()

    @asynccontextmanager
    async def _explained(
        self, what: str, timeout: float, detail: Callable[[], str] = lambda: ""
    ) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(timeout):
                yield
        except TimeoutError:
            raise self.error(f"not {what}; {detail()}") from None

    def _must_run(self, what: str) -> None:
        if not self.running:
            raise self.error(f"ended with {self.exit_code} before: {what}")


__all__ = ["UNMEASURED", "BrokerError", "Service"]
