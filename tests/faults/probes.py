"""What the probes and the status say, against what was: no false alarm, none missing, a reason for every trouble."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from itertools import accumulate
from typing import TYPE_CHECKING

from tests.faults.history import Violation

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tests.faults.history import Fault, History, MessageId, Sample
    from tests.faults.wirelog import WireLog

# The alarm is due between the two: 25 s is the promise of the probe, 30 s that of the programme.
SOONEST_ALARM_SECONDS = 20.0
LATEST_ALARM_SECONDS = 30.0
BACK_SECONDS = 30.0
_OK = 200
_GAP_SECONDS = 3.0
# From the moment a fault is undone to the moment the service has noticed.
_NOTICE_SECONDS = 12.0


class _Progress:
    """What one mapping wrote when, and what waited meanwhile."""

    def __init__(self, history: History, wire: WireLog, mapping: str) -> None:
        appended: dict[MessageId, float] = {}
        for record in history.records:
            if record.mapping == mapping:
                appended[record.id] = min(record.at, appended.get(record.id, record.at))
        self._appends = sorted(appended.values())
        accepted = {each.id: each.accepted_at for each in history.publications if each.accepted_at is not None}
        self._accepted = _Waiting(accepted, appended)
        self._received = _Waiting(wire.first_deliveries(mapping), appended)

    def rested(self, at: float, seconds: float) -> bool:
        """Whether nothing was written in the seconds before."""
        return bisect_right(self._appends, at) == bisect_left(self._appends, at - seconds)

    def kept_waiting(self, at: float, seconds: float) -> bool:
        """Whether a message waits for so long: one that it has received, or any while nothing is written at all."""
        return self._received.since(at, seconds) or (self.rested(at, seconds) and self._accepted.since(at, seconds))

    def stood(self, at: float, seconds: float) -> bool:
        """Whether there is anything an alarm could be about."""
        return self.rested(at, seconds) or self._received.since(at, seconds)


class _Waiting:
    """Messages by the moment they began to wait, with the latest moment any of them was written.

    Those that were never written are lost, which is another invariant's matter, or excused.
    """

    def __init__(self, began: dict[MessageId, float], appended: dict[MessageId, float]) -> None:
        spans = sorted((at, appended[each]) for each, at in began.items() if each in appended)
        self._began = [at for at, _ in spans]
        self._latest = list(accumulate((until for _, until in spans), max))

    def since(self, at: float, seconds: float) -> bool:
        """Whether one that has waited for so many seconds is not written yet."""
        count = bisect_right(self._began, at - seconds)
        return count > 0 and self._latest[count - 1] > at


def check_probes(history: History, wire: WireLog) -> Iterator[Violation]:
    """Check every look at every service."""
    for traceback in history.tracebacks:
        yield Violation(0, f"a crash in the service's own code, in the log of service {traceback}")
    for service, mappings in history.services.items():
        samples = [each for each in history.samples if each.service == service]
        progress = [_Progress(history, wire, mapping) for mapping in mappings]
        yield from _readiness(history, service, samples)
        yield from _alarms(history, service, samples, progress)
        yield from _reasons(history, samples)


# --- /readyz ----------------------------------------------------------------------------------------------------------


def _readiness(history: History, service: str, samples: Sequence[Sample]) -> Iterator[Violation]:
    for sample in samples:
        if sample.ready.status == _OK:
            continue
        fault = history.fault_at(sample.at)
        if fault is not None and _may_be_unready(fault, sample, samples):
            continue
        said = f"said {sample.ready.status} ({sample.ready.reasons})" if sample.ready.status else "did not answer"
        when = f"{history.clock(sample.at)}, {f'after {fault.name!r} began' if fault else 'before any fault'}"
        yield Violation(0, f"service {service}: /readyz {said} at {when}")
    for fault in history.faults:
        if fault.cost.unready and not any(
            each.ready.status not in {_OK, 0} and each.ready.reasons
            for each in samples
            if fault.begin <= each.at <= fault.end
        ):
            yield Violation(0, f"service {service}: /readyz never said that anything was wrong during {fault.name!r}")


def _may_be_unready(fault: Fault, sample: Sample, samples: Sequence[Sample]) -> bool:
    """Until it is back, a service that was away does not answer, and then it says that it is starting."""
    if fault.cost.unready and sample.ready.status and sample.at <= fault.end + _NOTICE_SECONDS:
        return True
    if not fault.cost.away:
        return False
    back = next(
        (each.at for each in samples if each.at >= fault.end and each.ready.status == _OK), fault.end + BACK_SECONDS
    )
    return sample.at <= min(back, fault.end + BACK_SECONDS)


# --- /healthz/forwarding ----------------------------------------------------------------------------------------------


def _alarms(
    history: History, service: str, samples: Sequence[Sample], progress: Sequence[_Progress]
) -> Iterator[Violation]:
    answered_since: float | None = None
    previous = 0.0
    for sample in samples:
        status, at = sample.forwarding.status, sample.at
        if not status or at - previous > _GAP_SECONDS:
            answered_since = None
        if status and answered_since is None:
            answered_since = at
        previous = at
        if not status:
            continue
        if status != _OK and not any(each.stood(at, SOONEST_ALARM_SECONDS) for each in progress):
            yield Violation(
                0,
                f"service {service}: a false alarm at {history.clock(at)}, although every mapping made progress within "
                f"the {SOONEST_ALARM_SECONDS:g} s before: {sample.forwarding.reasons}",
            )
        if (
            status == _OK
            and answered_since is not None
            and at - answered_since >= LATEST_ALARM_SECONDS
            and any(each.kept_waiting(at, LATEST_ALARM_SECONDS) for each in progress)
        ):
            fault = history.fault_at(at)
            yield Violation(
                0,
                f"service {service}: /healthz/forwarding said that all is well at {history.clock(at)}, although "
                f"messages had waited for {LATEST_ALARM_SECONDS:g} s"
                f" ({f'after {fault.name!r} began' if fault else 'without any fault'})",
            )


# --- states and reasons -----------------------------------------------------------------------------------------------


def _reasons(history: History, samples: Sequence[Sample]) -> Iterator[Violation]:
    for sample in samples:
        fault = history.fault_at(sample.at)
        blames = fault.cost.blames if fault else ()
        for each in sample.mappings:
            when = f"mapping {each.mapping} at {history.clock(sample.at)}"
            if each.state == "failed":
                yield Violation(0, f"{when} is failed: {each.reason}")
            elif each.state == "retrying":
                code, _, detail = (each.reason or "").partition(": ")
                if not detail or not code.startswith(blames or ("nothing",)):
                    cause = f"during or after {fault.name!r}" if fault else "without any fault"
                    yield Violation(0, f"{when} is retrying {cause} for this reason: {each.reason}")
