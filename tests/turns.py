"""Some tests need the whole machine, and nothing of the tests may run beside them: `@pytest.mark.alone`.

A test that loads both cores by design would make every time limit of its neighbours a matter of luck, and one that
holds a rate against the clock is at its neighbours' mercy.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def turn(*, alone: bool, folder: Path | None = None) -> Iterator[None]:
    """Wait for a test's turn among all processes of the tests on this machine, and hold it.

    Any number run side by side, or one alone. Who wants to be alone waits at the gate and lets nobody else pass, so
    that it comes to its turn however many go on. `folder` is where the locks lie; they end with their process.
    """
    path = Path(folder or tempfile.gettempdir(), f"mkf-tests-turn-{os.getuid()}")
    with path.with_suffix(".gate").open("wb") as gate, path.open("wb") as running:
        fcntl.flock(gate, fcntl.LOCK_EX)
        fcntl.flock(running, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        fcntl.flock(gate, fcntl.LOCK_UN)
        yield
