"""Files that are replaced while the service runs are noticed, however that is done."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING

from server.files import on_change
from server.tasks import ended
from tests.realtime import until

if TYPE_CHECKING:
    from pathlib import Path


_until = partial(until, within=20)


async def test_every_change_is_told_and_nothing_else(tmp_path: Path) -> None:
    one, other, link = tmp_path / "one", tmp_path / "other", tmp_path / "link"
    one.write_text("a")
    other.write_text("b")
    link.symlink_to(one)
    seen: list[str | None] = []

    def read() -> None:
        seen.append(link.read_text() if link.exists() else None)

    watching = asyncio.create_task(on_change([link], read, every=0.01))
    await _until(lambda: seen == ["a"])
    one.write_text("changed")
    await _until(lambda: seen[-1] == "changed")
    (tmp_path / "new").symlink_to(other)
    (tmp_path / "new").replace(link)
    await _until(lambda: seen[-1] == "b")
    link.unlink()
    await _until(lambda: seen[-1] is None)
    told = len(seen)
    await asyncio.sleep(0.1)
    assert len(seen) == told
    link.write_text("back")
    await _until(lambda: seen[-1] == "back")
    await ended(watching)
