"""The tool's own processes: publishers and the reader, told what to do through pipes."""

from __future__ import annotations

import multiprocessing
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from loadtest import publisher, reader
from loadtest.measurement import MeasurementError
from loadtest.publisher import Assignment, Published
from loadtest.reader import Reading, Stop

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from loadtest.endpoints import MqttEndpoint
    from loadtest.workload import Workload

START_TIMEOUT = 60.0
READ_TIMEOUT = 600.0
# fork would share librdkafka's threads and open sockets.
_PROCESSES = multiprocessing.get_context("spawn")

Result = TypeVar("Result")


class CrewError(MeasurementError):
    """A publisher or the reader ended or fell silent."""


class Worker(Generic[Result]):
    """A process that says when it is ready, gets one order, and answers with one result."""

    def __init__(self, name: str, body: Callable[..., None], *arguments: Any) -> None:
        self.name = name
        self._pipe, theirs = _PROCESSES.Pipe()
        first, *rest = arguments
        self._process = _PROCESSES.Process(target=body, args=(first, theirs, *rest), name=name, daemon=True)
        self._process.start()
        theirs.close()

    @property
    def pid(self) -> int:
        """Its process id."""
        assert self._process.pid is not None  # noqa: S101 - it was started
        return self._process.pid

    @property
    def done(self) -> bool:
        """Whether the result is there, or never will be."""
        return self._pipe.poll()

    def wait_ready(self) -> None:
        """Wait until it has connected."""
        self._receive(START_TIMEOUT)

    def order(self, order: object) -> None:
        """Tell it to begin, or to stop."""
        self._pipe.send(order)

    def result(self, timeout: float = READ_TIMEOUT) -> Result:
        """Wait for the result, so many seconds.

        Raises:
            CrewError: it ended without one, or is not ready in time.
        """
        result: Result = self._receive(timeout)
        return result

    def end(self) -> None:
        """Let it end, or make it."""
        self._process.join(1)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def _receive(self, timeout: float) -> Any:
        if not self._pipe.poll(timeout):
            raise CrewError(f"the {self.name} did not answer within {timeout:g} s")
        try:
            return self._pipe.recv()
        except EOFError:
            raise CrewError(f"the {self.name} broke down, see above") from None


@contextmanager
def publishers(mqtt: MqttEndpoint, prefix: str, workload: Workload) -> Iterator[list[Worker[Published]]]:
    """Have the publishers of a workload ready: connected, everything prepared. An order lets each begin."""
    workers = [
        Worker[Published](f"publisher {number}", publisher.publish, Assignment(mqtt, prefix, workload, number))
        for number in range(workload.publishers)
    ]
    try:
        for worker in workers:
            worker.wait_ready()
        yield workers
    finally:
        for worker in workers:
            worker.end()


class ReaderWorker(Worker[Reading]):
    """The reader."""

    def __init__(self, task: reader.Task) -> None:
        self._arrived = _PROCESSES.Value("q", 0)
        super().__init__("reader", reader.read, task, self._arrived)

    @property
    def arrived(self) -> int:
        """How many different messages have arrived so far."""
        count: int = self._arrived.value
        return count

    def stop(self, published: Sequence[int]) -> Reading:
        """Let it read to the end, and return what it has found."""
        self.order(Stop(published))
        return self.result()


@contextmanager
def reading(task: reader.Task) -> Iterator[ReaderWorker]:
    """Have a reader ready."""
    worker = ReaderWorker(task)
    try:
        worker.wait_ready()
        yield worker
    finally:
        worker.end()


def run_all(workers: Sequence[Worker[Published]], timeout: float, tick: Callable[[], None]) -> list[Published]:
    """Let all publishers begin, and wait until all are done; `tick` is called about ten times a second."""
    for worker in workers:
        worker.order(None)
    deadline = time.monotonic() + timeout
    while not all(worker.done for worker in workers) and time.monotonic() < deadline:
        tick()
        time.sleep(0.1)
    return [worker.result(1) for worker in workers]
