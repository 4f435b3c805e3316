"""The one thread of a store: SQL never runs on the event loop, and never longer than its limit."""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

from server.store.errors import StoreUnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable

Result = TypeVar("Result")

UNKNOWN_OUTCOME = " when the change was being committed, so it may have been made: read it again"


class Job:
    """One call under way; `remaining()` is what it has left, `given_up` says that nobody waits for it any more.

    `committing` says that its change is on its way to a server, so that it may be made although nobody waits.
    `advice` is what to check if it takes too long.
    """

    def __init__(self, limit: float, advice: str) -> None:
        self.limit = limit
        self.given_up = False
        self.committing = False
        self._advice = advice
        self._deadline = time.monotonic() + limit

    def remaining(self) -> float:
        """Seconds until the caller gives up, time spent in the queue included; never negative."""
        return max(0.0, self._deadline - time.monotonic())

    def timed_out(self) -> StoreUnavailableError:
        """The error of a call that took too long."""
        doubt = UNKNOWN_OUTCOME if self.committing else ""
        return StoreUnavailableError(
            f"the store did not answer within {self.limit:g} s{doubt}; {self._advice}", undecided=self.committing
        )


class Worker:
    """Runs jobs one after the other in a thread of its own.

    `interrupt` must make whatever the thread is doing in the database fail soon; it is called from another thread, and
    must not wait. `advice` is what to check if that is needed.
    """

    def __init__(self, interrupt: Callable[[], None], advice: str) -> None:
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="store")
        self._interrupt = interrupt
        self._advice = advice
        self._lock = threading.Lock()
        self._running: Job | None = None

    async def run(self, work: Callable[[Job], Result], *, limit: float) -> Result:
        """Do `work` in the thread and return its result, within `limit` seconds, waiting for its turn included.

        A cancelled caller's job is dropped if it has not begun; otherwise it ends as if the caller were there.

        Raises:
            StoreUnavailableError: it took longer; the work is interrupted and must not commit.
        """
        job = Job(limit, self._advice)
        future = asyncio.wrap_future(self._executor.submit(self._perform, job, work))
        try:
            await asyncio.wait({future}, timeout=limit)
            if not future.done():
                self._give_up(job)
                raise job.timed_out()
        finally:
            # Of a job that has begun this only drops the result, which nobody would collect.
            future.cancel()
        return future.result()

    def stop(self) -> None:
        """End the thread after the job it is doing; the others are dropped."""
        self._executor.shutdown(wait=False, cancel_futures=True)

    def _perform(self, job: Job, work: Callable[[Job], Result]) -> Result:
        with self._lock:
            self._running = job
        try:
            return work(job)
        finally:
            with self._lock:
                self._running = None

    def _give_up(self, job: Job) -> None:
        # Under the lock, because the interrupt must not hit the job that comes next.
        with self._lock:
            job.given_up = True
            if self._running is job:
                self._interrupt()
