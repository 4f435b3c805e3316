"""The judge judged, in what it says of memory, time, books and probes."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.faults.histories import (
    BEGIN,
    KILL,
    MAPPINGS,
    delayed,
    fault,
    found,
    good,
    the_only,
    with_mapping,
)
from tests.faults.history import (
    Answer,
    Cost,
    Exit,
)

# --- conduct ----------------------------------------------------------------------------------------------------------


def test_memory_over_the_limit_is_found() -> None:
    history = good()
    history.samples[7] = replace(history.samples[7], memory=151)
    assert "at 3.50 s" in the_only(history, 6)


def test_a_recovery_that_takes_too_long_is_found() -> None:
    history = good(fault=fault(5, 10, replace(KILL, blames=("mqtt_",))))
    delayed(history, 5.0, 41.0, MAPPINGS[0])
    (said,) = [text for invariant, text in found(history) if invariant == 7]
    assert "5/qos1 after 'kill -9', which ended at 10.00 s" in said
    assert "a message published after it came only 30.8 s later" in said


def test_a_mapping_that_runs_too_late_is_found() -> None:
    history = good(fault=fault(5, 10, Cost(blames=("kafka_",)), "kafka"))
    for index, sample in enumerate(history.samples):
        if 10 <= sample.at - BEGIN < 41:
            history.samples[index] = with_mapping(sample, state="retrying", reason="kafka_stalled: no answer")
    assert "it was running only 31.0 s later" in the_only(history, 7)


def test_a_fault_that_must_not_disturb_and_does_is_found() -> None:
    history = good(fault=fault(5, 20, Cost(stalls=False), "disk full"))
    delayed(history, 6.0, 12.0, MAPPINGS[0])
    assert "is no reason to stop" in the_only(history, 7)


def test_a_slow_exit_is_found() -> None:
    history = good()
    history.exits.append(Exit(BEGIN + 60, "5", 25.3, 0))
    assert "25.3 s to end" in the_only(history, 7)


def test_an_exit_code_is_found() -> None:
    history = good()
    history.exits.append(Exit(BEGIN + 60, "5", 2.0, 143))
    assert "ended with 143" in the_only(history, 7)


@pytest.mark.parametrize("column", ["received", "delivered", "dead_lettered", "dropped", "in_flight"])
def test_books_that_do_not_balance_are_found(column: str) -> None:
    history = good()
    history.samples[9] = with_mapping(history.samples[9], **{column: 77})
    assert "5/qos1 at 4.50 s" in the_only(history, 8)


# --- probes and reasons -----------------------------------------------------------------------------------------------


def test_a_service_that_is_not_ready_without_cause_is_found() -> None:
    for unready in (Answer(503, "the store does not answer"), Answer(0)):
        history = good(fault=fault(20, 22, Cost(blames=("mqtt_",)), "partition"))
        history.samples[42] = replace(history.samples[42], ready=unready)
        assert "/readyz" in the_only(history, 0)


def test_a_service_that_was_killed_need_not_answer_until_it_is_back() -> None:
    history = good(fault=fault(20, 22))
    for index in range(40, 48):
        history.samples[index] = replace(history.samples[index], ready=Answer(0), forwarding=Answer(0), mappings=())
    assert found(history) == []
    history.samples[55] = replace(history.samples[55], ready=Answer(0))
    assert "did not answer, at 27.50 s" in the_only(history, 0)


def test_a_store_fault_that_readyz_does_not_show_is_found() -> None:
    history = good(fault=fault(20, 28, Cost(unready=True), "store locked"))
    assert "never said" in the_only(history, 0)
    history.samples[50] = replace(history.samples[50], ready=Answer(503, "the store does not answer: locked"))
    assert found(history) == []


def test_a_false_alarm_is_found() -> None:
    history = good(fault=fault(20, 22))
    history.samples[50] = replace(history.samples[50], forwarding=Answer(503, "mapping '5/qos1': stuck"))
    said = the_only(history, 0)
    assert "a false alarm" in said
    assert "at 25.00 s" in said


@pytest.mark.parametrize("alarm", [False, True])
def test_a_missing_alarm_is_found(alarm: bool) -> None:
    history = good(seconds=70, fault=fault(5, 50, Cost(blames=("kafka_",)), "kafka away"))
    delayed(history, 5.0, 50.0, MAPPINGS[0])
    for index, sample in enumerate(history.samples):
        if alarm and 28 <= sample.at - BEGIN < 50:
            history.samples[index] = replace(sample, forwarding=Answer(503, "mapping '5/qos1': stuck"))
    if alarm:
        assert found(history) == []
    else:
        said = the_only(history, 0)
        assert "said that all is well" in said
        assert "35.50 s to 49.50 s" in said


def test_one_received_message_that_waits_is_enough_for_an_alarm() -> None:
    history = good(seconds=70, fault=fault(5, 50, Cost(blames=("kafka_",)), "one partition without a leader"))
    moved = next(each for each in history.records if each.mapping == MAPPINGS[0] and each.id == ("load/4", 19))
    history.records.remove(moved)
    history.records.append(replace(moved, partition=7, offset=0, at=BEGIN + 50))
    said = found(history)
    assert any("said that all is well" in each for _, each in said)


def test_a_wrong_reason_is_found() -> None:
    for reason in (None, "", "kafka_stalled", "internal_error: KeyError", "mqtt_timeout: no CONNACK"):
        history = good(fault=fault(20, 22, Cost(blames=("kafka_",)), "kafka away"))
        history.samples[42] = with_mapping(history.samples[42], state="retrying", reason=reason)
        assert "is retrying" in the_only(history, 0)


def test_a_mapping_that_retries_without_a_fault_is_found() -> None:
    history = good()
    history.samples[42] = with_mapping(history.samples[42], state="retrying", reason="kafka_stalled: no answer")
    assert "before any fault" in the_only(history, 0)


def test_a_failed_mapping_is_found() -> None:
    history = good(fault=fault(20, 22))
    history.samples[42] = with_mapping(history.samples[42], state="failed", reason="internal_error: KeyError")
    assert "is failed" in the_only(history, 0)


def test_a_crash_that_was_survived_is_found() -> None:
    history = good()
    history.tracebacks.append("5: /tmp/service.log")
    assert "a crash in the service's own code" in the_only(history, 0)
