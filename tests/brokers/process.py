"""Child processes that never outlive the tests, wait with deadlines, and explain themselves when they fail."""

from __future__ import annotations

import contextlib
import fcntl
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

POLL = 0.02
LOG_TAIL = 40
STOP_SECONDS = 5.0
# Below Linux's ephemeral range (32768-60999), so that no outgoing connection takes a port between choosing and using.
PORTS = range(20_000, 32_000)
_RANDOM = random.SystemRandom()  # hypothesis seeds the other one, the same way in all workers

# Becomes the command after asking the kernel to kill it when the thread that started it ends. A wrapper instead of
# preexec_fn, which may deadlock in a process with threads.
_LEASH = """
import ctypes, os, signal, sys
ctypes.CDLL(None, use_errno=True).prctl(1, signal.SIGKILL, 0, 0, 0)
if os.getppid() != int(sys.argv[1]):
    sys.exit("the parent is gone")
os.execvp(sys.argv[2], sys.argv[2:])
"""
# "Parent" means the thread to the kernel. Tests start brokers from short-lived threads too (asyncio.to_thread), so
# every process is started by this one thread, which lives as long as the interpreter.
_SPAWNER = ThreadPoolExecutor(max_workers=1, thread_name_prefix="spawner")


def _stopped(pid: int) -> bool:
    """Whether each thread is stopped, or gone."""
    for stat in Path(f"/proc/{pid}/task").glob("*/stat"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            if stat.read_text().rpartition(")")[2].split()[0] not in "TtZX":
                return False
    return True


class BrokerError(RuntimeError):
    """A process did not do what a test needs; the message carries the end of its log."""


class _Claims:
    """The ports this process may use; no other process of the tests gets them while it lives.

    Between choosing a port and listening on it seconds may pass: that of a proxy is in its broker's configuration.
    """

    def __init__(self) -> None:
        self._own: set[int] = set()
        self._file: BinaryIO | None = None

    def claim(self, port: int) -> bool:
        """Whether nobody has claimed it before."""
        if self._file is None:
            path = Path(tempfile.gettempdir(), f"mkf-tests-ports-{os.getuid()}")
            self._file = path.open("wb")  # closed with the process, and its locks go with it
        if port in self._own:
            return False
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, port)
        except OSError:
            return False
        self._own.add(port)
        return True


_CLAIMS = _Claims()


def free_port(host: str = "127.0.0.1") -> int:
    """Return a port nobody listens on, and no other process of the tests will.

    A stranger still may: whoever can retry with another.
    """
    for _ in range(200):
        port = _RANDOM.choice(PORTS)
        if not _CLAIMS.claim(port):
            continue
        with socket.socket() as probe:
            try:
                probe.bind((host, port))
            except OSError:
                continue
            return port
    raise BrokerError(f"no free port in {PORTS} on {host}")


def accepts(host: str, port: int) -> bool:
    """Whether something accepts TCP connections there."""
    try:
        socket.create_connection((host, port), timeout=1).close()
    except OSError:
        return False
    return True


def wait_until(condition: Callable[[], bool], *, timeout: float, what: str) -> None:
    """Poll until the condition holds; blocking, for use in fixtures and worker threads."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise BrokerError(f"not within {timeout:g} s: {what}")
        time.sleep(POLL)


class Process(Protocol):
    """What is known of a process that was started; `subprocess.Popen` is one."""

    @property
    def pid(self) -> int: ...

    def poll(self) -> int | None: ...

    def wait(self, timeout: float) -> int: ...

    def send_signal(self, sig: int) -> None: ...


class Child:
    """One command that can be run again and again, with its output in a log file.

    All methods block (briefly, with deadlines); from a coroutine call them as `await asyncio.to_thread(child.stop)`
    where the loop must go on turning.
    """

    def __init__(self, name: str, log_path: Path) -> None:
        self.name = name
        self.log_path = log_path
        self._process: Process | None = None
        self._log_start = 0
        self._paused = False

    @property
    def pid(self) -> int:
        return self._started().pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def exit_code(self) -> int | None:
        return None if self._process is None else self._process.poll()

    def spawn(
        self, command: Sequence[str | Path], *, env: Mapping[str, str] | None = None, cwd: Path | None = None
    ) -> None:
        """Start the command; its log is appended to."""
        leashed = [sys.executable, "-I", "-S", "-c", _LEASH, str(os.getpid()), *map(str, command)]

        def start() -> Process:
            with self.log_path.open("ab") as log:
                return _SPAWNER.submit(
                    subprocess.Popen,
                    leashed,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env=env,
                    cwd=cwd,
                    start_new_session=True,
                ).result()

        self.started_by(start)

    def started_by(self, start: Callable[[], Process]) -> None:
        """Start it in a way of one's own, in a session of its own and with its output behind what is in the log."""
        if self.running:
            raise BrokerError(f"{self.name} is running already")
        self._log_start = self.log_path.stat().st_size if self.log_path.exists() else 0
        self._process = start()
        self._paused = False

    def log(self) -> str:
        """What it has written since it was last started."""
        if not self.log_path.exists():
            return ""
        with self.log_path.open("rb") as file:
            file.seek(self._log_start)
            return file.read().decode(errors="replace")

    def wait_until(self, condition: Callable[[], bool], *, timeout: float, what: str) -> None:
        """Poll until the condition holds; fail at once if the process ends before."""
        deadline = time.monotonic() + timeout
        while not condition():
            if not self.running:
                raise self.error(f"ended with {self.exit_code} before: {what}")
            if time.monotonic() > deadline:
                raise self.error(f"not within {timeout:g} s: {what}")
            time.sleep(POLL)

    def wait(self, timeout: float) -> int:
        """Wait for the process to end, return its exit code."""
        try:
            return self._started().wait(timeout)
        except subprocess.TimeoutExpired:
            raise self.error(f"still runs after {timeout:g} s") from None

    def signal(self, number: signal.Signals) -> None:
        self._started().send_signal(number)

    def terminate(self, timeout: float) -> int:
        """SIGTERM, and the exit code; a process that ignores it is an error (and is killed)."""
        if self._paused:
            self.resume()
        self.signal(signal.SIGTERM)
        try:
            return self.wait(timeout)
        except BrokerError:
            self.kill()
            raise

    def kill(self) -> None:
        """SIGKILL for the process and what it started, without a chance to clean up."""
        process = self._started()
        with contextlib.suppress(ProcessLookupError):  # the whole group may be gone already, which is the aim
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(10)

    def pause(self) -> None:
        """Freeze it: connections stay open, nothing answers any more when this returns."""
        self.signal(signal.SIGSTOP)
        self._paused = True
        deadline = time.monotonic() + STOP_SECONDS
        while not _stopped(self._started().pid):  # a thread on another core goes on for a moment
            if time.monotonic() > deadline:
                raise self.error(f"still running {STOP_SECONDS:g} s after SIGSTOP")
            time.sleep(0.001)

    def resume(self) -> None:
        self.signal(signal.SIGCONT)
        self._paused = False

    def error(self, what: str) -> BrokerError:
        """Make an exception that shows the end of the log."""
        tail = "\n".join(f"    {line}" for line in self.log().splitlines()[-LOG_TAIL:])
        return BrokerError(f"{self.name}: {what}\n  the end of {self.log_path}:\n{tail}")

    def _started(self) -> Process:
        if self._process is None:
            raise BrokerError(f"{self.name} was never started")
        return self._process
