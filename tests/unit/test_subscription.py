"""From what a session is subscribed to to what is wanted, and which copy of a message counts."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.core.mapping import MAX_FILTERS, MqttSource
from server.core.subscription import CopyFilter, Session, Subscription, SubscriptionPlan, plan_subscriptions
from server.core.topics import any_overlap

_FILTERS = ["#", "a/#", "+/b", "a/+", "a/b", "x/y"]


def _plan(session: Session, *filters: str, qos: int = 1, identifiers: bool = True) -> SubscriptionPlan:
    return plan_subscriptions(session, filters, qos=qos, protocol="5", identifiers=identifiers)


def _reached(session: Session, *filters: str, qos: int = 1, identifiers: bool = True) -> Session:
    plan = _plan(session, *filters, qos=qos, identifiers=identifiers)
    return plan.reached({each.topic_filter: each.qos for each in plan.subscribe})


_NEW = Session("c", "m")


def test_a_session_has_only_as_many_filters_as_can_be_compared_with_each_other() -> None:
    filters = [str(number) for number in range(MAX_FILTERS + 1)]
    assert len(MqttSource(topic=filters[1:]).filters) == MAX_FILTERS
    with pytest.raises(ValueError, match=f"at most {MAX_FILTERS} topic filters are possible, these are"):
        MqttSource(topic=filters)


def test_a_new_session_subscribes_everything() -> None:
    plan = _plan(_NEW, "a", "b")
    assert plan.subscribe == (Subscription("a", 1), Subscription("b", 1))
    assert plan.unsubscribe == ()
    assert not plan.is_empty
    assert plan.during.established
    assert plan.during.protocol == "5"
    assert plan.during.subscriptions == plan.subscribe


def test_a_session_that_has_what_is_wanted_is_left_alone() -> None:
    session = _reached(_NEW, "a", "b")
    assert _plan(session, "a", "b").is_empty
    assert session.subscriptions == (Subscription("a", 1, granted=1), Subscription("b", 1, granted=1))


def test_a_filter_that_is_gone_is_unsubscribed_and_remembered_until_it_is() -> None:
    session = _reached(_NEW, "a", "b")
    plan = _plan(session, "b", "c")
    assert [each.topic_filter for each in plan.subscribe] == ["c"]
    assert plan.unsubscribe == ("a",)
    assert [each.topic_filter for each in plan.during.subscriptions] == ["a", "b", "c"]
    assert [each.topic_filter for each in plan.reached({"c": 0}).subscriptions] == ["b", "c"]
    assert plan.reached({"c": 0}).subscriptions[1].granted == 0


def test_what_was_not_acknowledged_is_subscribed_again() -> None:
    during = _plan(_NEW, "a").during
    assert _plan(during, "a").subscribe == (Subscription("a", 1),)


def test_another_qos_is_subscribed_anew_and_qos_2_is_never_forgotten() -> None:
    session = _reached(_NEW, "a", qos=2)
    assert session.held_qos2
    plan = _plan(session, "a", qos=1)
    assert plan.subscribe == (Subscription("a", 1),)
    assert plan.during.held_qos2


def test_over_311_no_qos_2_is_held() -> None:
    plan = plan_subscriptions(_NEW, ["a"], qos=2, protocol="3.1.1", identifiers=False)
    assert not plan.during.held_qos2
    assert plan.during.protocol == "3.1.1"


def test_only_filters_that_overlap_get_identifiers() -> None:
    assert all(each.identifier is None for each in _plan(_NEW, "a", "b").subscribe)
    assert [each.identifier for each in _plan(_NEW, "a/+", "+/b").subscribe] == [1, 2]
    assert all(each.identifier is None for each in _plan(_NEW, "a/+", "+/b", identifiers=False).subscribe)


def test_filters_that_begin_to_overlap_are_subscribed_anew_with_identifiers() -> None:
    session = _reached(_NEW, "a/+")
    plan = _plan(session, "a/+", "+/b")
    assert [(each.topic_filter, each.identifier) for each in plan.subscribe] == [("a/+", 1), ("+/b", 2)]


def test_an_identifier_stays_with_its_filter_and_is_never_used_again() -> None:
    session = _reached(_NEW, "a/+", "+/b")
    session = _reached(session, "+/b")
    assert session.subscriptions == (Subscription("+/b", 1, 2, granted=1),)
    session = _reached(session, "+/b", "a/+")
    assert [(each.topic_filter, each.identifier) for each in session.subscriptions] == [("+/b", 2), ("a/+", 3)]


def test_without_identifiers_at_the_broker_they_are_given_up() -> None:
    session = _reached(_NEW, "a/+", "+/b")
    session = _reached(session, "a/+", "+/b", identifiers=False)
    assert all(each.identifier is None for each in session.subscriptions)
    assert session.last_identifier == 2


def test_a_first_connection_ends_the_wish_for_a_clean_start() -> None:
    assert not _plan(replace(_NEW, clean_start=True), "a").during.clean_start


def test_a_session_that_ended_has_nothing_left_but_its_name() -> None:
    session = replace(_reached(_NEW, "a/+", "+/b", qos=2), clean_start=True, removal_pending=True)
    assert session.ended() == replace(_NEW, protocol="5", removal_pending=True)


@settings(deadline=None)
@given(
    changes=st.lists(
        st.tuples(
            st.lists(st.sampled_from(_FILTERS), min_size=1, max_size=4, unique=True),
            st.sampled_from([0, 1, 2]),
            st.booleans(),
            st.booleans(),
        ),
        max_size=8,
    )
)
def test_whatever_was_before_a_plan_ends_with_what_is_wanted(
    changes: list[tuple[list[str], int, bool, bool]],
) -> None:
    session = _NEW
    known: dict[int, str] = {}
    for filters, qos, identifiers, acknowledged in changes:
        plan = _plan(session, *filters, qos=qos, identifiers=identifiers)
        for each in plan.during.subscriptions:
            if each.identifier is not None:
                assert known.setdefault(each.identifier, each.topic_filter) == each.topic_filter
                assert each.identifier <= plan.during.last_identifier
        before = {each.topic_filter for each in session.subscriptions}
        assert {each.topic_filter for each in plan.during.subscriptions} == before | set(filters)
        assert set(plan.unsubscribe) == before - set(filters)
        if not acknowledged:
            session = plan.during
            continue
        session = plan.reached({each.topic_filter: each.qos for each in plan.subscribe})
        assert {each.topic_filter for each in session.subscriptions} == set(filters)
        assert all(each.qos == qos and each.granted is not None for each in session.subscriptions)
        if identifiers and any_overlap(filters):
            assert all(each.identifier is not None for each in session.subscriptions)
        assert _plan(session, *filters, qos=qos, identifiers=identifiers).is_empty


_A, _B, _PLAIN = Subscription("a/+", 1, 4, 1), Subscription("+/b", 1, 7, 1), Subscription("#", 1, None, 1)


@pytest.mark.parametrize(
    ("subscriptions", "can_be"), [((), False), ((_A,), False), ((_A, _PLAIN), False), ((_A, _B), True)]
)
def test_there_can_be_extra_copies_only_of_two_identified_subscriptions(
    subscriptions: tuple[Subscription, ...], can_be: bool
) -> None:
    assert bool(CopyFilter(subscriptions)) is can_be


@pytest.mark.parametrize(
    ("topic", "identifiers", "extra"),
    [
        ("a/b", [4], False),
        ("a/b", [7], True),
        ("a/b", [7, 4], False),
        ("a/b", [], False),
        ("x/b", [7], False),
        ("a/x", [4], False),
        ("a/b", [9], False),  # a filter that is gone
        ("a/b", [7, 9], False),
        ("q", [4], False),  # matches nothing any more
    ],
)
@pytest.mark.parametrize("subscriptions", [(_A, _B), (_B, _A)])
def test_the_copy_of_the_oldest_matching_filter_counts_and_what_is_in_doubt(
    subscriptions: tuple[Subscription, ...], topic: str, identifiers: list[int], extra: bool
) -> None:
    assert CopyFilter(subscriptions).is_extra(topic, identifiers) is extra


def test_a_filter_the_broker_has_not_granted_takes_no_copy_from_another() -> None:
    # It may have been refused, or never have got there: the other's copy is the only one.
    copies = CopyFilter((replace(_A, granted=None), _B))
    assert not copies.is_extra("a/b", [7])
    assert not copies.is_extra("a/b", [4])


def test_a_filter_that_is_being_subscribed_brings_extra_copies_of_what_an_older_one_matches() -> None:
    copies = CopyFilter((_A, replace(_B, granted=None)))
    assert copies
    assert copies.is_extra("a/b", [7])
    assert not copies.is_extra("x/b", [7])
