"""The judge judged: every kind of broken history must be found, and a good one must pass."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.faults.checker import violations
from tests.faults.histories import (
    BEGIN,
    KAFKA_AWAY,
    KILL,
    MAPPINGS,
    PARTITIONS,
    TO_ACK,
    TO_KAFKA,
    TOPICS,
    acks,
    delayed,
    fault,
    good,
    never_delivered,
    swap,
    unanswered,
    with_mapping,
    without,
    write,
)
from tests.faults.history import (
    Ack,
    Answer,
    Cost,
    Delivery,
    Excuse,
    Exit,
    History,
    Stored,
)


def found(history: History) -> list[tuple[int, str]]:
    return [(each.invariant, str(each)) for each in violations(history)]


def the_only(history: History, invariant: int) -> str:
    """What the checker says of a history with one thing wrong."""
    (violation,) = violations(history)
    assert violation.invariant == invariant, str(violation)
    return str(violation)


# --- good histories ---------------------------------------------------------------------------------------------------


def test_a_good_history_passes() -> None:
    assert found(good()) == []
    assert found(good(fault=fault(20, 25))) == []


def test_messages_that_the_broker_did_not_accept_need_not_arrive() -> None:
    history = good()
    lost = history.publications[17]
    lost.accepted_at = None
    history.records = [each for each in history.records if each.id != lost.id]
    history.wire = [
        event
        for event in history.wire
        if not (isinstance(event, Delivery) and event.message == lost.id)
        and not (isinstance(event, Ack) and event.packet_id == 18)
    ]
    assert found(history) == []


def test_messages_that_were_published_twice_may_arrive_twice() -> None:
    history = good()
    history.publications[17].attempts = 2
    write(history, 17, MAPPINGS[0], at=BEGIN + 3)
    assert found(history) == []


def test_a_killed_service_repeats_what_was_in_flight() -> None:
    history = good(fault=fault(20, 22))
    unanswered(history, 199, MAPPINGS[0], ended=20.0)
    write(history, 199, MAPPINGS[0], at=BEGIN + 22.5)
    assert found(history) == []


def test_order_is_kept_across_partitions_that_were_added() -> None:
    history = good()
    history.records = [
        replace(each, partition=each.partition + PARTITIONS) if each.at > BEGIN + 30 else each
        for each in history.records
    ]
    assert found(history) == []


def test_what_a_broker_lost_with_its_queue_is_excused() -> None:
    history = good(fault=fault(20, 22))
    history.excuses.append(Excuse("sessions wiped", "accepted", BEGIN + 19.5, BEGIN + 22))
    gone = {each.id for each in history.publications if 19.6 < each.sent_at - BEGIN < 21}
    never_delivered(history, gone)
    assert found(history) == []


def test_what_was_in_a_topic_that_was_deleted_is_excused() -> None:
    history = good(fault=fault(20, 22))
    history.excuses.append(Excuse("deleted", "in flight", BEGIN + 20, BEGIN + 22, MAPPINGS[0]))
    history.records = [
        each for each in history.records if each.mapping != MAPPINGS[0] or not 20 <= each.at - BEGIN <= 21.9
    ]
    assert found(history) == []


def test_dead_letters_count_as_arrived() -> None:
    history = good()
    history.records = [
        replace(each, dead_letter=True, partition=9, offset=index) if each.seq == 7 else each
        for index, each in enumerate(history.records)
    ]
    assert found(history) == []


def test_what_is_dropped_by_rule_is_not_lost() -> None:
    history = good()
    history.dropped_by_rule[MAPPINGS[0]] = 1
    without(history, MAPPINGS[0], ("load/2", 7))
    assert found(history) == []


# --- lost -------------------------------------------------------------------------------------------------------------


def test_a_message_that_was_acknowledged_and_is_not_in_kafka_is_found() -> None:
    history = good(fault=fault(1, 2))
    without(history, MAPPINGS[1], ("load/2", 7))
    said = the_only(history, 1)
    assert "5/qos2" in said
    assert "load/2 #7, acknowledged at 3.73 s" in said


def test_a_message_that_was_accepted_and_never_delivered_is_found() -> None:
    history = good(fault=fault(1, 2))
    never_delivered(history, {("load/2", 7)}, MAPPINGS[0])
    said = the_only(history, 2)
    assert "load/2 #7, accepted at 3.70 s (after 'kill -9')" in said


def test_more_missing_than_dropped_by_rule_is_found() -> None:
    history = good()
    history.dropped_by_rule[MAPPINGS[0]] = 1
    without(history, MAPPINGS[0], ("load/2", 7))
    without(history, MAPPINGS[0], ("load/3", 7))
    assert "2 messages" in the_only(history, 1)


def test_an_excuse_covers_only_its_time_and_its_mapping() -> None:
    history = good()
    history.excuses.append(Excuse("wiped", "accepted", BEGIN + 10, BEGIN + 12, MAPPINGS[1]))
    never_delivered(history, {("load/2", 21)})  # 10.7 s
    assert "5/qos1" in the_only(history, 2)
    history = good()
    history.excuses.append(Excuse("wiped", "accepted", BEGIN + 10, BEGIN + 12))
    never_delivered(history, {("load/2", 21), ("load/2", 25)})  # and 12.7 s
    assert {invariant for invariant, _ in found(history)} == {2}


def test_a_record_nobody_published_is_found() -> None:
    history = good()
    history.records.append(Stored(MAPPINGS[0], "load/1", 4_711, "?", 0, 4_711, BEGIN + 5))
    assert "never published" in the_only(history, 2)


def test_a_changed_payload_is_found() -> None:
    history = good()
    history.records[30] = replace(history.records[30], uuid="another")
    assert any("never published" in said for _, said in found(history))
    assert any("not in Kafka" in said for _, said in found(history))


# --- repeated ---------------------------------------------------------------------------------------------------------


def test_a_repeat_without_a_fault_is_found() -> None:
    history = good(fault=fault(20, 22))
    write(history, 17, MAPPINGS[0], at=BEGIN + 10)
    assert "1 repeats before any fault: load/2 #3 at 10.00 s" in the_only(history, 3)


def test_a_repeat_after_a_fault_that_costs_none_is_found() -> None:
    history = good(fault=fault(5, 6, Cost(), "latency"))
    write(history, 17, MAPPINGS[0], at=BEGIN + 10)
    assert "after 'latency'" in the_only(history, 3)
    assert "which may cost 0" in the_only(history, 3)


def test_what_was_acknowledged_a_second_before_a_connection_broke_may_be_repeated_and_no_more() -> None:
    history = good(fault=fault(20, 22))
    unanswered(history, 199, MAPPINGS[0], ended=20.0)
    for number in range(190, 200):
        write(history, number, MAPPINGS[0], at=BEGIN + 22.5)
    assert found(history) == []
    write(history, 189, MAPPINGS[0], at=BEGIN + 22.5)
    assert "11 repeats" in the_only(history, 3)


def test_a_producer_that_was_given_up_repeats_what_was_in_flight_at_most() -> None:
    history = good(fault=fault(20.005, 22, KAFKA_AWAY, "kafka killed"))
    write(history, 200, MAPPINGS[0], at=BEGIN + 22.5)
    assert found(history) == []
    write(history, 201, MAPPINGS[0], at=BEGIN + 22.5)
    assert "may cost 1 " in the_only(history, 3)


def test_a_third_copy_of_a_message_that_was_published_twice_is_found() -> None:
    history = good()
    history.publications[17].attempts = 2
    for _ in range(2):
        write(history, 17, MAPPINGS[0], at=BEGIN + 10)
    assert "1 repeats" in the_only(history, 3)


def test_a_redelivery_that_should_have_been_attached_is_found() -> None:
    cost = Cost(repeats="connection", attaches=True, blames=("mqtt_",))
    history = good(fault=fault(20, 22, cost, "rst"))
    unanswered(history, 199, MAPPINGS[0], ended=20.0)
    # Kafka confirms it only after the connection has broken, so no acknowledgement can have been written.
    moved = next(each for each in history.records if each.mapping == MAPPINGS[0] and each.id == ("load/4", 39))
    history.records.remove(moved)
    history.records.append(replace(moved, at=BEGIN + 20.6))
    assert found(history) == []
    write(history, 199, MAPPINGS[0], at=BEGIN + 22.5)
    assert "instead of being attached: load/4 #39" in the_only(history, 3)


# --- order ------------------------------------------------------------------------------------------------------------


def test_swapped_records_are_found() -> None:
    history = good()
    swap(history, 20, 20 + 2 * TOPICS)
    said = the_only(history, 4)
    assert "order is broken on 1 topics" in said
    assert "load/0 #4" in said


def test_order_that_is_broken_between_partitions_is_found() -> None:
    history = good()
    index = next(index for index, each in enumerate(history.records) if each.id == ("load/1", 7))
    history.records[index] = replace(history.records[index], partition=7, offset=0, at=BEGIN + 30)
    assert any(invariant == 4 for invariant, _ in found(history))


def test_order_counts_first_copies_only() -> None:
    history = good(fault=fault(20, 22, KAFKA_AWAY))
    write(history, 200, MAPPINGS[0], at=BEGIN + 25)
    assert found(history) == []


# --- acknowledgements -------------------------------------------------------------------------------------------------


def test_an_early_acknowledgement_is_found() -> None:
    history = good()
    ack = acks(history, MAPPINGS[0])[40]
    ack.at -= 0.015
    said = the_only(history, 5)
    assert "5 ms before Kafka had it" in said
    assert "load/0 #8" in said


def test_acknowledgements_out_of_receive_order_are_found() -> None:
    history = good()
    first, second = acks(history, MAPPINGS[1])[40:42]
    first.at, second.at = second.at, second.at
    first.packet_id, second.packet_id = second.packet_id, first.packet_id
    history.wire.sort(key=lambda event: event.at)
    assert any("overtook" in said for _, said in found(history))


def test_an_acknowledgement_on_a_later_connection_is_found() -> None:
    history = good(fault=fault(20, 22))
    unanswered(history, 199, MAPPINGS[0], ended=20.0)
    assert found(history) == []
    history.wire.append(Ack(BEGIN + 59, MAPPINGS[0], 99, 200, "PUBACK", BEGIN + 59))
    said = the_only(history, 5)
    assert "on connection 99" in said
    assert "on a later connection than the acknowledgement of load/4 #39" in said


def test_an_acknowledgement_of_nothing_is_found() -> None:
    history = good()
    history.wire.append(Ack(BEGIN + 59, MAPPINGS[0], 0, 4_711, "PUBACK"))
    assert "answers no PUBLISH" in the_only(history, 5)


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
    assert "a message published after it arrived only 30.8 s later" in said


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


# --- any --------------------------------------------------------------------------------------------------------------


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_single_change_of_a_good_history_is_a_violation(data: st.DataObject) -> None:
    history = good(seconds=6, fault=fault(4, 4.2, Cost()))
    data.draw(st.sampled_from(MUTATIONS))(history, data)
    assert violations(history)


def _lose(history: History, data: st.DataObject) -> None:
    history.records.remove(data.draw(st.sampled_from(history.records)))


def _repeat(history: History, data: st.DataObject) -> None:
    copied = data.draw(st.sampled_from(history.records))
    history.records.append(replace(copied, offset=copied.offset + 1_000, at=copied.at + 0.5))


def _swap(history: History, data: st.DataObject) -> None:
    number = data.draw(st.integers(0, 60 - TOPICS - 1))
    swap(history, number, number + TOPICS)


def _ack_early(history: History, data: st.DataObject) -> None:
    ack = data.draw(st.sampled_from(acks(history, data.draw(st.sampled_from(MAPPINGS)))))
    ack.at -= TO_ACK - TO_KAFKA + data.draw(st.floats(0.001, 0.005))


def _ack_elsewhere(history: History, data: st.DataObject) -> None:
    data.draw(st.sampled_from(acks(history, data.draw(st.sampled_from(MAPPINGS))))).connection += 2


def _ack_another(history: History, data: st.DataObject) -> None:
    data.draw(st.sampled_from(acks(history, data.draw(st.sampled_from(MAPPINGS))))).packet_id += 1_000


def _misbook(history: History, data: st.DataObject) -> None:
    index = data.draw(st.integers(0, len(history.samples) - 1))
    column = data.draw(st.sampled_from(["received", "delivered", "dead_lettered", "dropped", "in_flight"]))
    sample = history.samples[index]
    value = getattr(sample.mappings[0], column) + data.draw(st.integers(1, 5))
    history.samples[index] = with_mapping(sample, **{column: value})


def _corrupt(history: History, data: st.DataObject) -> None:
    index = data.draw(st.integers(0, len(history.records) - 1))
    history.records[index] = replace(history.records[index], uuid="changed")


MUTATIONS = [_lose, _repeat, _swap, _ack_early, _ack_elsewhere, _ack_another, _misbook, _corrupt]
