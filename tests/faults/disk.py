"""A small disk of its own for a store, so that it can be filled without filling the machine's."""

from __future__ import annotations

import subprocess
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_MEGABYTES = 4


@contextmanager
def small_disk(folder: Path) -> Iterator[None]:
    """Mount an ext4 of a few megabytes there; without the right to (it needs root) the folder stays what it is."""
    image = folder.with_suffix(".img")
    with image.open("wb") as file:
        file.truncate(_MEGABYTES * 1024 * 1024)
    mounted = _done("mkfs.ext4", "-q", "-m", "0", "-O", "^has_journal", str(image)) and _done(
        "mount", "-o", "loop", str(image), str(folder)
    )
    try:
        yield
    finally:
        if mounted:
            subprocess.run(["umount", folder], check=True)
        image.unlink()


def _done(*command: str) -> bool:
    return subprocess.run(command, check=False, capture_output=True).returncode == 0
