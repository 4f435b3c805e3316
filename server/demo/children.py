"""Child processes that are gone when their block is left, and free ports for them."""

from __future__ import annotations

import asyncio
import random
import socket
import sys
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from asyncio.subprocess import Process
    from collections.abc import AsyncIterator, Mapping
    from pathlib import Path

LOG_TAIL = 25
# Below the ephemeral ports, so that no outgoing connection takes one between choosing and listening.
PORTS = range(20_000, 32_000)


# Runs a module as `python -m` does, in a process that the kernel ends with the demo (Linux only), so that not even
# kill -9 of the demo leaves a broker behind.
_LEASH = """
import runpy, signal, sys
if sys.platform == "linux":
    import ctypes
    ctypes.CDLL(None).prctl(1, signal.SIGTERM, 0, 0, 0)
del sys.argv[0]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""


class DemoError(Exception):
    """The demo can't go on; the message is for the person who started it."""


def is_free(port: int) -> bool:
    """Whether this port could be listened on now, on any address."""
    with socket.socket() as probe:
        try:
            probe.bind(("", port))
        except OSError:
            return False
    return True


def free_port() -> int:
    """Return a port nobody listens on."""
    for port in random.sample(PORTS, 200):
        if is_free(port):
            return port
    raise DemoError(f"no free port between {PORTS.start} and {PORTS.stop}")


@asynccontextmanager
async def python_module(
    module: str, *arguments: str, log: Path, grace: float, env: Mapping[str, str] | None = None
) -> AsyncIterator[Process]:
    """Run a module; at the end SIGTERM, and SIGKILL for one that is still there after `grace` seconds.

    It gets a session of its own, so that Ctrl-C reaches only the demo, which ends its children in order.
    """
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            _LEASH,
            module,
            *arguments,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=env,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.terminate()
            try:
                await asyncio.wait_for(process.wait(), grace)
            except TimeoutError:
                process.kill()
                await process.wait()


async def until_listening(process: Process, host: str, port: int, *, log: Path, timeout: float) -> None:  # noqa: ASYNC109 - a deadline of the wait itself
    """Wait until the process accepts connections."""
    deadline = time.monotonic() + timeout
    while True:
        try:
            _, writer = await asyncio.open_connection(host, port)
        except OSError:
            if process.returncode is not None:
                raise DemoError(f"ended with {process.returncode}:\n{tail(log)}") from None
            if time.monotonic() > deadline:
                raise DemoError(f"nothing listens on {host}:{port} after {timeout:g} s:\n{tail(log)}") from None
            await asyncio.sleep(0.05)
        else:
            writer.close()
            return


def tail(log: Path, lines: int = LOG_TAIL) -> str:
    """Return the end of a log file."""
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])
