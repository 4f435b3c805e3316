"""Certificates of a test's own authority, and a Mosquitto that listens in every way a broker can be reached."""

from __future__ import annotations

import datetime as dt
import shutil
import signal
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import trustme

from tests.brokers.mosquitto import Mosquitto
from tests.brokers.process import accepts, free_port

if TYPE_CHECKING:
    from pathlib import Path

KINDS = ["tcp", "tls", "mtls", "ws", "wss", "mwss"]  # m: the client shows a certificate
OVER_TLS = ["tls", "mtls", "wss", "mwss"]
OVER_WEBSOCKET = ["ws", "wss", "mwss"]
WITH_CERTIFICATE = ["mtls", "mwss"]
_RELOADING = "Reloading config"


@dataclass(frozen=True, slots=True)
class PemFiles:
    """A certificate and its key."""

    cert: Path
    key: Path


class Authority:
    """Who signs; `ca_cert` is the PEM file to trust."""

    def __init__(self, folder: Path, name: str = "ca") -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._ca = trustme.CA()
        self.ca_cert = folder / f"{name}.pem"
        self._ca.cert_pem.write_to_path(self.ca_cert)

    def issue(self, name: str, *hosts: str, expired: bool = False) -> PemFiles:
        """Sign a certificate for these hosts and write it to files of this name, in the place of those before."""
        hour = dt.timedelta(hours=1)
        now = dt.datetime.now(tz=dt.UTC)
        issued = self._ca.issue_cert(
            *hosts, not_before=now - 2 * hour, not_after=now - hour if expired else now + 24 * hour
        )
        files = PemFiles(self._folder / f"{name}.pem", self._folder / f"{name}.key")
        issued.private_key_pem.write_to_path(files.key)
        files.cert.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
        return files


class SecureMosquitto(Mosquitto):
    """A Mosquitto with a listener of each kind; `port` is the plain one.

    `server` and `authority` may be changed between starts. With `passwords` nobody is let in without one.
    """

    def __init__(
        self,
        folder: Path,
        *,
        authority: Authority,
        server: PemFiles,
        passwords: dict[str, str] | None = None,
        extra: tuple[str, ...] = (),
        **options: Any,
    ) -> None:
        super().__init__(folder, extra=extra, **options)
        self.authority = authority
        self.server = server
        self.ports = {kind: free_port() for kind in KINDS if kind != "tcp"}
        self._password_file = folder / "passwords"
        self._has_passwords = passwords is not None
        self.set_passwords(passwords or {})

    def set_passwords(self, passwords: dict[str, str]) -> None:
        """Write the password file; a broker that runs takes it up by SIGHUP."""
        self._password_file.write_text("".join(f"{name}:{password}\n" for name, password in passwords.items()))
        if passwords:
            subprocess.run([_passwd(), "-U", self._password_file], check=True)

    def reload(self) -> None:
        """Take up changed passwords; whoever does not fit them any more is thrown out."""
        before = self.log().count(_RELOADING)
        self.signal(signal.SIGHUP)
        self.wait_until(lambda: self.log().count(_RELOADING) > before, timeout=10, what="reloading")

    def start(self) -> None:
        """Start and wait for every listener."""
        super().start()
        for port in self.ports.values():
            self.wait_until(lambda: accepts(self.host, port), timeout=10, what=f"listening on {port}")  # noqa: B023

    def port_of(self, kind: str) -> int:
        """The port of this kind of listener."""
        return self.ports.get(kind, self.port)

    def mqtt(self, kind: str, client: PemFiles | None = None, **tls: Any) -> dict[str, Any]:
        """What the service's configuration says under `mqtt` to come in by a listener of this kind."""
        section: dict[str, Any] = {"host": self.host, "port": self.port_of(kind)}
        if kind in OVER_WEBSOCKET:
            section["transport"] = "websocket"
        if kind in OVER_TLS:
            section["tls"] = {"ca_cert": str(self.authority.ca_cert), **tls}
        if client is not None:
            section["tls"] |= {"client_cert": str(client.cert), "client_key": str(client.key)}
        return section

    def _config(self, port: int) -> list[str]:
        lines = super()._config(port)
        if self._has_passwords:
            lines[lines.index("allow_anonymous true")] = "allow_anonymous false"
            lines.append(f"password_file {self._password_file}")
        files = (
            f"cafile {self.authority.ca_cert}",
            f"certfile {self.server.cert}",
            f"keyfile {self.server.key}",
        )
        for kind, of_kind in self.ports.items():
            lines.append(f"listener {of_kind} {self.host}")
            if kind in OVER_WEBSOCKET:
                lines.append("protocol websockets")
            if kind in OVER_TLS:
                lines += files
            if kind in WITH_CERTIFICATE:
                lines.append("require_certificate true")
        return lines


def _passwd() -> str:
    return shutil.which("mosquitto_passwd") or "/usr/bin/mosquitto_passwd"
