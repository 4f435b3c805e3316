"""The service, without waiting for its imports: a process that has done them (`tests/forker.py`) forks for every start.

The tests start the service hundreds of times, and what it imports takes longer than most of these tests (5 s of CPU on
a slow machine). A fork goes on as `python -m server.cli` does, with its own arguments, environment, output, signals
and exit code. Only what an interpreter and libc read from the environment when they start is not read again, and
anonymous memory is shared until it is written to (`Service.private_memory` counts it all the same).
"""

from __future__ import annotations

import atexit
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.brokers.process import POLL, Child
from tests.forker import COVERAGE, MODULE, MOST_BYTES

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_IMPORT_SECONDS = 60.0
_ANSWER_SECONDS = 60.0


class Forked:
    """A process that was forked for us; as much of `subprocess.Popen` as `Child` needs."""

    def __init__(self, prefork: Prefork, pid: int) -> None:
        self.pid = pid
        self._prefork = prefork
        self._lock = threading.Lock()  # an exit code is told once
        self._code: int | None = None

    def poll(self) -> int | None:
        """The exit code, -n after signal n; None while it runs."""
        with self._lock:
            if self._code is None:
                self._code = self._prefork.ask({"ended": self.pid})
            return self._code

    def wait(self, timeout: float) -> int:
        """Wait for the end.

        Raises:
            subprocess.TimeoutExpired: it has not come after so many seconds.
        """
        deadline = time.monotonic() + timeout
        while (code := self.poll()) is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(MODULE, timeout)
            time.sleep(POLL)
        return code

    def send_signal(self, number: int) -> None:
        """Send a signal, if it has not ended."""
        if self.poll() is None:  # until it is asked for, the pid stays its own
            os.kill(self.pid, number)


class Prefork:
    """The process that forks, of this process of the tests; started with the first fork, and ended by our end."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._child: Child | None = None
        self._control: socket.socket | None = None

    def start(self, arguments: Sequence[str], env: Mapping[str, str], log: Path) -> Forked:
        """Run `python -m server.cli` with these arguments; output is appended to the log."""
        pid = self.ask({"arguments": list(arguments), "env": dict(env), "log": str(log), "folder": str(Path.cwd())})
        return Forked(self, pid)

    def ask(self, request: dict[str, Any]) -> Any:
        """One exchange with it.

        Raises:
            BrokerError: it has ended.
        """
        with self._lock:
            if self._child is None or self._control is None:
                self._child, self._control = _started()
            self._control.send(json.dumps(request).encode())
            if answer := self._control.recv(MOST_BYTES):
                return json.loads(answer)
            self._control.close()
            self._control = None
            self._child.wait(_ANSWER_SECONDS)
        raise self._child.error("has ended")


def _started() -> tuple[Child, socket.socket]:
    """Start it, and wait until it has imported everything."""
    name = f"\0mkf-tests-{uuid.uuid4().hex}"
    env = {key: value for key, value in os.environ.items() if key not in COVERAGE}
    folder = tempfile.mkdtemp(prefix="mkf-prefork-")
    atexit.register(shutil.rmtree, folder)
    child = Child("prefork", Path(folder, "prefork.log"))
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(name)
        listener.listen(1)
        listener.settimeout(_IMPORT_SECONDS)
        child.spawn([sys.executable, "-m", "tests.forker", name[1:]], env=env, cwd=Path(__file__).parents[1])
        try:
            control, _ = listener.accept()
        except TimeoutError:
            raise child.error(f"has not imported everything within {_IMPORT_SECONDS:g} s") from None
    control.settimeout(_ANSWER_SECONDS)
    return child, control


PREFORK = Prefork()
