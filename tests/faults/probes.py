"""What the probes and the status say, against what was: no false alarm, none missing, a reason for every trouble."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from itertools import accumulate, groupby
from typing import TYPE_CHECKING

from tests.faults.history import Violation

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

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
# From a record in Kafka's log to the service's news of it.
_NEWS_SECONDS = 2.0


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
        for mapping in mappings:
            yield from _reasons(history, mapping, samples)


def _spells(told: Iterable[tuple[float, str | None]]) -> Iterator[tuple[float, float, str]]:
    """What was told at moments one after the other: the first moment, the last, and what."""
    for what, moments in groupby(told, key=lambda each: each[1]):
        if what is not None:
            at = [moment for moment, _ in moments]
            yield at[0], at[-1], what


def _violation(history: History, begin: float, end: float, what: str) -> Violation:
    fault = history.fault_at(begin)
    span = f"at {history.clock(begin)}" if begin == end else f"{history.clock(begin)} to {history.clock(end)}"
    return Violation(0, f"{what}, {span}, {f'after {fault.name!r} began' if fault else 'before any fault'}")


# --- /readyz ----------------------------------------------------------------------------------------------------------


def _readiness(history: History, service: str, samples: Sequence[Sample]) -> Iterator[Violation]:
    def told(sample: Sample) -> str | None:
        ready = sample.ready
        fault = history.fault_at(sample.at)
        if ready.status == _OK or (fault is not None and _may_be_unready(fault, sample, samples)):
            return None
        return f"said {ready.status} ({ready.reasons})" if ready.status else "did not answer"

    for begin, end, what in _spells((each.at, told(each)) for each in samples):
        yield _violation(history, begin, end, f"service {service}: /readyz {what}")
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
    told: list[tuple[float, str | None]] = []
    answered_since = previous = float("inf")
    for sample in samples:
        at = sample.at
        if not sample.forwarding.status or at - previous > _GAP_SECONDS:
            answered_since = float("inf")
        if sample.forwarding.status:
            answered_since = min(answered_since, at)
        told.append((at, _alarm(sample, at - answered_since, progress)))
        previous = at
    for begin, end, what in _spells(told):
        yield _violation(history, begin, end, f"service {service}: {what}")


def _alarm(sample: Sample, answered_for: float, progress: Sequence[_Progress]) -> str | None:
    """What is wrong with the probe's answer."""
    status, at = sample.forwarding.status, sample.at
    if status == _OK:
        if answered_for >= LATEST_ALARM_SECONDS and any(
            each.kept_waiting(at, LATEST_ALARM_SECONDS) for each in progress
        ):
            return (
                "/healthz/forwarding said that all is well, although messages had waited for "
                f"{LATEST_ALARM_SECONDS:g} s"
            )
        return None
    moments = (at, at - _NEWS_SECONDS)
    if not status or any(each.stood(moment, SOONEST_ALARM_SECONDS) for each in progress for moment in moments):
        return None
    reasons = sample.forwarding.reasons
    return f"a false alarm, for every mapping had made progress within {SOONEST_ALARM_SECONDS:g} s ({reasons})"


# --- states and reasons -----------------------------------------------------------------------------------------------


def _reasons(history: History, mapping: str, samples: Sequence[Sample]) -> Iterator[Violation]:
    def told(sample: Sample) -> str | None:
        fault = history.fault_at(sample.at)
        blames = fault.cost.blames if fault else ()
        seen = next((each for each in sample.mappings if each.mapping == mapping), None)
        if seen is not None and seen.state == "failed":
            return f"is failed ({seen.reason})"
        if seen is not None and seen.state == "retrying":
            code, _, detail = (seen.reason or "").partition(": ")
            if not detail or not code.startswith(blames or ("nothing",)):
                return f"is retrying for a reason that this fault does not explain ({seen.reason})"
        return None

    for begin, end, what in _spells((each.at, told(each)) for each in samples):
        yield _violation(history, begin, end, f"mapping {mapping} {what}")
