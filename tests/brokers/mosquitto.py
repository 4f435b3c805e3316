"""A real Mosquitto on a port of its own."""

from __future__ import annotations

import getpass
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from tests.brokers.process import BrokerError, Child, accepts, free_port

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

START_TIMEOUT = 15.0
STOP_TIMEOUT = 15.0
START_ATTEMPTS = 5


@dataclass(frozen=True, slots=True)
class MqttBroker:
    """Where an MQTT broker listens; all a test needs that doesn't break it."""

    host: str
    port: int


class Mosquitto(Child):
    """A Mosquitto that can be stopped, killed, frozen and restarted on the same port.

    `max_inflight` and `max_queued` are Mosquitto's limits per client, 0 is unlimited for both; its own defaults (20
    and 1,000) drop messages silently. `persistence` writes sessions to disk when it is stopped by SIGTERM; with
    `autosave` they are also written after every change, so that they survive `kill()` (slow: for few messages).
    """

    def __init__(
        self,
        folder: Path,
        *,
        persistence: bool = True,
        autosave: bool = False,
        max_inflight: int = 0,
        max_queued: int = 0,
        extra: Sequence[str] = (),
        port: int | None = None,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        super().__init__("mosquitto", folder / "mosquitto.log")
        self.folder = folder
        self.host = "127.0.0.1"
        self._port = port
        self._persistence = persistence
        self._autosave = autosave
        self._max_inflight = max_inflight
        self._max_queued = max_queued
        self._extra = tuple(extra)

    @property
    def port(self) -> int:
        if self._port is None:
            raise BrokerError("mosquitto was never started")
        return self._port

    @property
    def address(self) -> MqttBroker:
        return MqttBroker(self.host, self.port)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.running:
            self.kill()

    def start(self) -> None:
        """Start and wait until it accepts connections; the first start chooses the port."""
        attempts = START_ATTEMPTS if self._port is None else 1
        for attempt in range(attempts):
            port = self._port or free_port(self.host)
            self._start_on(port)
            if self.running:
                self._port = port
                return
            if "Address already in use" not in self.log() or attempt == attempts - 1:
                raise self.error("does not start")

    def stop(self) -> None:
        """SIGTERM: persistent sessions are written to disk first."""
        self.terminate(STOP_TIMEOUT)

    def restart(self, *, wipe: bool = False, kill: bool = False) -> None:
        """Stop (or kill) it if it runs, and start it on the same port; `wipe` loses all sessions and messages."""
        if self.running:
            if kill:
                self.kill()
            else:
                self.stop()
        if wipe:
            self.database.unlink(missing_ok=True)
        self.start()

    @property
    def database(self) -> Path:
        return self.folder / "mosquitto.db"

    def _start_on(self, port: int) -> None:
        config = self.folder / "mosquitto.conf"
        config.write_text("\n".join(self._config(port)) + "\n")
        self.spawn([_binary(), "-c", config])
        try:
            self.wait_until(
                lambda: " running\n" in self.log() and accepts(self.host, port),
                timeout=START_TIMEOUT,
                what=f"listening on {port}",
            )
        except BrokerError:
            if self.running:
                raise

    def _config(self, port: int) -> list[str]:
        lines = [
            f"listener {port} {self.host}",
            "allow_anonymous true",
            # Started as root it would become "mosquitto", who may not write to this folder.
            f"user {getpass.getuser()}",
            f"max_inflight_messages {self._max_inflight}",
            f"max_queued_messages {self._max_queued}",
            "log_dest stderr",
            *(f"log_type {kind}" for kind in ("error", "warning", "notice", "information")),
        ]
        if self._persistence:
            lines += ["persistence true", f"persistence_location {self.folder}/"]
            if self._autosave:
                lines += ["autosave_on_changes true", "autosave_interval 1"]
        return [*lines, *self._extra]


def _binary() -> str:
    # Debian puts it in /usr/sbin, which is not on every user's PATH.
    found = shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin:/opt/homebrew/sbin")
    if found is None:
        raise BrokerError("mosquitto is not installed: apt-get install mosquitto, or set MKF_TEST_MQTT=host:port")
    return found
