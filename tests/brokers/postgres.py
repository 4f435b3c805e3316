"""A real Postgres on a port of its own, owned by somebody it agrees to run as: it refuses root."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Self
from urllib.parse import quote

import psutil
import psycopg

from tests.brokers.process import BrokerError, Child, free_port

START_TIMEOUT = 30.0
STOP_TIMEOUT = 15.0
START_ATTEMPTS = 5
USER = "mkf"
# What must never be seen in a log, an error or an answer; the characters are those a URL has to escape.
PASSWORD = "p@ss:word/canary%?"
DATABASE = "postgres"


class Postgres(Child):
    """A Postgres that can be stopped, crashed, frozen and restarted on the same port.

    Every connection needs USER and PASSWORD; with a `certificate` (PEM, its key included) it also speaks TLS. It does
    not wait for the disk.
    """

    def __init__(self, *, certificate: bytes | None = None) -> None:
        # In memory, if pytest's folders are (tests/conftest.py): what it does wait for is fast there.
        self.folder = Path(tempfile.mkdtemp(prefix="mkf-postgres-", dir=os.environ.get("PYTEST_DEBUG_TEMPROOT")))
        super().__init__("postgres", self.folder / "postgres.log")
        self.host = "127.0.0.1"
        self._certificate = certificate
        self._port: int | None = None
        self._schemas = 0

    @property
    def port(self) -> int:
        if self._port is None:
            raise BrokerError("postgres was never started")
        return self._port

    def __enter__(self) -> Self:
        self._init()
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.running:
            self.crash()
        shutil.rmtree(self.folder)

    def url(self, *, schema: str | None = None, database: str = DATABASE, options: str = "", user: str = USER) -> str:
        """The store's URL; with `schema`, everything is created and found there."""
        address = f"postgresql+psycopg://{user}:{quote(PASSWORD, safe='')}@{self.host}:{self.port}/{database}"
        search_path = f"options=-csearch_path%3D{schema}" if schema else ""
        query = "&".join(part for part in (search_path, options) if part)
        return f"{address}?{query}" if query else address

    def fresh_url(self) -> str:
        """The URL of a store that is empty."""
        self._schemas += 1
        schema = f"t{self._schemas}"
        with self.connect() as connection:
            connection.execute(f"CREATE SCHEMA {schema}")
        return self.url(schema=schema)

    def connect(self, database: str = DATABASE) -> psycopg.Connection:
        """Connect as the superuser, each statement a transaction of its own."""
        return psycopg.connect(
            host=self.host, port=self.port, user=USER, password=PASSWORD, dbname=database, autocommit=True
        )

    def start(self) -> None:
        """Start and wait until it accepts connections; the first start chooses the port."""
        attempts = START_ATTEMPTS if self._port is None else 1
        for attempt in range(attempts):
            port = self._port or free_port(self.host)
            settings = [f"port={port}", f"listen_addresses={self.host}", f"unix_socket_directories={self.folder}"]
            # SIGKILL for its parent's death has to be asked for anew after the change of the user.
            command = [*_as_its_user("--pdeathsig", "KILL"), program("postgres"), "-D", str(self.folder / "data")]
            self.spawn([*command, *(part for setting in settings for part in ("-c", setting))], cwd=self.folder)
            try:
                self.wait_until(
                    lambda: "database system is ready to accept connections" in self.log(),
                    timeout=START_TIMEOUT,
                    what=f"listening on {port}",
                )
            except BrokerError:
                if "Address already in use" not in self.log() or attempt == attempts - 1:
                    raise
            else:
                self._port = port
                return

    def crash(self) -> None:
        """All its processes end at once, without a checkpoint and without a word to the clients."""
        children = psutil.Process(self.pid).children()
        self.kill()  # first, so that it can't start others; each of them is in a group of its own
        for child in children:
            with contextlib.suppress(psutil.NoSuchProcess):  # it has noticed that its parent is gone
                child.kill()
        psutil.wait_procs(children, timeout=STOP_TIMEOUT)

    def freeze(self) -> None:
        """Stop all its processes: connections stay open, nothing answers."""
        self.pause()
        for child in psutil.Process(self.pid).children():
            child.suspend()

    def thaw(self) -> None:
        """Let all its processes go on."""
        for child in psutil.Process(self.pid).children():
            child.resume()
        self.resume()

    def _init(self) -> None:
        password = self.folder / "password"
        password.write_text(PASSWORD)
        if os.geteuid() == 0:
            user = pwd.getpwnam(_USER_NAME)
            for path in (self.folder, password):
                os.chown(path, user.pw_uid, user.pw_gid)
        subprocess.run(
            [
                *_as_its_user(),
                program("initdb"),
                *("--pgdata", self.folder / "data", "--username", USER, "--pwfile", password),
                *("--auth", "scram-sha-256", "--encoding", "UTF8", "--locale", "C", "--no-sync"),
            ],
            cwd=self.folder,
            check=True,
            capture_output=True,
        )
        with (self.folder / "data" / "postgresql.conf").open("a") as file:
            file.write("fsync = off\nfull_page_writes = off\nshared_buffers = 16MB\n")
            if self._certificate is not None:
                file.write("ssl = on\nssl_cert_file = 'server.pem'\nssl_key_file = 'server.pem'\n")
        if self._certificate is not None:
            path = self.folder / "data" / "server.pem"
            path.write_bytes(self._certificate)
            path.chmod(0o600)
            owner = path.parent.stat()
            os.chown(path, owner.st_uid, owner.st_gid)


_USER_NAME = "nobody"


def _as_its_user(*options: str) -> list[str]:
    if os.geteuid() != 0:
        return []
    user = pwd.getpwnam(_USER_NAME)
    return ["setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups", *options, "--"]


def program(name: str) -> str:
    """Return where one of the programs of Postgres is."""
    # Debian keeps the server's programs, one folder a version, off everybody's PATH.
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name))
    for folder in reversed(folders):
        if (folder / name).exists():
            return str(folder / name)
    found = shutil.which(name)
    if found is None:
        raise BrokerError(f"Postgres's {name} is not installed: apt-get install postgresql")
    return found
