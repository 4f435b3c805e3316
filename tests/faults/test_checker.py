"""The judge judged: every kind of broken history must be found, and a good one must pass."""

from __future__ import annotations

from dataclasses import replace

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
    fault,
    found,
    good,
    never_delivered,
    swap,
    the_only,
    unanswered,
    with_mapping,
    without,
    write,
)
from tests.faults.history import (
    Ack,
    Cost,
    Delivery,
    Excuse,
    History,
    Stored,
)

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


def test_what_a_frozen_broker_was_told_does_not_count_as_known() -> None:
    for unread in (True, False):
        history = good(fault=fault(10, 22, replace(KILL, unread=unread), "broker frozen"))
        unanswered(history, 199, MAPPINGS[0], ended=20.0)
        for number in range(110, 200):
            write(history, number, MAPPINGS[0], at=BEGIN + 22.5)
        if unread:
            assert found(history) == []
        else:
            assert "90 repeats after 'broker frozen' (from 10.00 s), which may cost 10 " in the_only(history, 3)


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
