"""The process that forks for `tests/prefork.py`: `python -m tests.forker SOCKET`.

It imports little else than the service does, for whatever is in its memory is in that of the forks.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import runpy
import signal
import socket
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

MODULE = "server.cli"
# What `serve` imports, and what it imports later on with the usual configuration.
PRELOADED = ("server.app", "sqlalchemy.dialects.sqlite", "uvicorn.lifespan.on", "uvloop")
MOST_BYTES = 1 << 20  # of a request
# What makes an interpreter measure coverage from its start, unless they are empty.
COVERAGE = ("COVERAGE_PROCESS_CONFIG", "COVERAGE_PROCESS_START")
_PR_SET_PDEATHSIG = 1


def serve(control: socket.socket) -> None:
    """Fork when asked to, and say what became of it, until those who ask are gone. Returns in each fork, too."""
    while request := control.recv(MOST_BYTES):
        order = json.loads(request)
        if "ended" in order:
            pid, status = os.waitpid(order["ended"], os.WNOHANG)
            answer = os.waitstatus_to_exitcode(status) if pid else None
        else:
            answer = os.fork()
            if answer == 0:
                control.close()
                become(**order)
                return
        control.send(json.dumps(answer).encode())


def become(arguments: Sequence[str], env: Mapping[str, str], log: str, folder: str) -> None:
    """Go on as `python -m server.cli`; raises SystemExit when that ends."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    os.setsid()
    output = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    for standard, target in enumerate((os.open(os.devnull, os.O_RDONLY), output, output)):
        os.dup2(target, standard)
    os.environ.clear()
    os.environ.update(env)
    os.chdir(folder)
    if any(os.environ.get(variable) for variable in COVERAGE):
        importlib.import_module("coverage").process_startup()
    sys.argv[1:] = arguments
    runpy.run_module(MODULE, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    for module in PRELOADED:
        importlib.import_module(module)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        connection.connect("\0" + sys.argv[1])
        serve(connection)
