"""Tests without waiting: an event loop whose clock jumps to the next timer as soon as nothing else is left to do.

    @in_virtual_time
    async def test_it_waits_ten_seconds() -> None: ...

The service's own clocks follow the loop's. A test that would hang for ever fails at once, and so does one that leaves
a task behind.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import selectors
import sys
import time
from contextlib import ExitStack
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, ParamSpec
from unittest.mock import patch

from server.store.worker import Worker

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

P = ParamSpec("P")

_START = 1000.0
_END = _START + 20_000.0
_REAL_SECONDS = 20.0
_MOST_TURNS = 50_000
_TURNS_PER_TICK = 1_000
_TICK = 1e-6
_CLOCKS = ("server.kafka.", "server.mqtt.", "server.runtime.")


class _Selector(selectors.DefaultSelector):
    """Jumps instead of waiting, unless a thread is at work."""

    def __init__(self, loop: VirtualLoop) -> None:
        super().__init__()
        self._loop = loop
        self._turns = 0

    def select(self, timeout: float | None = None) -> list[Any]:
        ready = super().select(0)
        if ready or timeout == 0:
            self._turns += 1
            if self._turns % _TURNS_PER_TICK == 0:  # a timer that a rounding error makes too early comes right at last
                self._loop.now += _TICK
            if self._turns > _MOST_TURNS:
                self._turns = 0
                raise RuntimeError(f"time stands still: {[task.get_stack() for task in asyncio.all_tasks(self._loop)]}")
            return ready
        self._turns = 0
        if self._loop.now > _END:
            self._loop.now = _START
            stacks = "\n".join(f"{task.get_name()}: {task.get_stack()}" for task in asyncio.all_tasks(self._loop))
            raise RuntimeError(f"the test does not end:\n{stacks}")
        if self._loop.busy_threads or timeout is None:
            ready = super().select(_REAL_SECONDS if self._loop.busy_threads else 1.0)
            if not ready:
                raise RuntimeError("nothing will ever happen")
            return ready
        self._loop.now += max(0.0, timeout or 0.0)
        return []


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop with a clock of its own."""

    def __init__(self) -> None:
        self.now = _START
        self.busy_threads = 0
        super().__init__(_Selector(self))

    def time(self) -> float:
        return self.now


def in_virtual_time(test: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """Make an async test a plain one that runs on a VirtualLoop."""

    @functools.wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        with asyncio.Runner(loop_factory=VirtualLoop) as runner:
            loop = runner.get_loop()
            assert isinstance(loop, VirtualLoop)
            with ExitStack() as stack:
                clock = SimpleNamespace(monotonic=loop.time, time=loop.time)
                assert time.monotonic is not clock.monotonic
                for name, module in list(sys.modules.items()):
                    if name.startswith(_CLOCKS) and getattr(module, "time", None) is time:
                        stack.enter_context(patch.object(module, "time", clock))
                stack.enter_context(patch.object(Worker, "run", _counted(Worker.run, loop)))
                runner.run(_alone(test(*args, **kwargs)))

    del run.__wrapped__  # pytest would ask it whether it is async
    run.__signature__ = inspect.signature(test)  # type: ignore[attr-defined]
    return run


async def _alone(test: Coroutine[Any, Any, None]) -> None:
    await test
    left = asyncio.all_tasks() - {asyncio.current_task()}
    assert not left, f"tasks left behind: {left}"


def _counted(
    run: Callable[..., Coroutine[Any, Any, Any]], loop: VirtualLoop
) -> Callable[..., Coroutine[Any, Any, Any]]:
    async def counted(*args: Any, **kwargs: Any) -> Any:
        loop.busy_threads += 1
        try:
            return await run(*args, **kwargs)
        finally:
            loop.busy_threads -= 1

    return counted


def now() -> float:
    """The virtual time in seconds."""
    return asyncio.get_running_loop().time()


async def until(condition: Callable[[], object], *, within: float = 120.0) -> None:
    """Let virtual time pass until the condition holds."""
    end = now() + within
    while not condition():
        assert now() < end, "the condition never held"
        await asyncio.sleep(0.005)


async def settled(turns: int = 20) -> None:
    """Let everything happen that needs no time."""
    for _ in range(turns):
        await asyncio.sleep(0)
