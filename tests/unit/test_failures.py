"""What failures mean. The codes stand here once more, so that a slip in the tables is seen."""

from __future__ import annotations

import pytest
from aiokafka.errors import for_code
from hypothesis import given, settings
from hypothesis import strategies as st

from server.core.failures import Kind, kafka_failure, mqtt_311_reason, mqtt_reason, subscription_refused

# Whoever fails may quote what it was given; only what Kafka can't have named is repeated.
_SECRET = "password=hunter2"

_KAFKA = {
    3: (Kind.RETRY, "kafka_topic_missing"),
    5: (Kind.RETRY, "kafka_no_leader"),
    6: (Kind.RETRY, "kafka_no_leader"),
    7: (Kind.RETRY, "kafka_timeout"),
    10: (Kind.POISON, "message_too_large"),
    17: (Kind.INVALID_TOPIC, "kafka_invalid_topic"),
    18: (Kind.POISON, "message_too_large"),
    19: (Kind.RETRY, "kafka_not_enough_replicas"),
    20: (Kind.RETRY, "kafka_not_enough_replicas"),
    29: (Kind.RETRY, "kafka_not_authorized"),
    31: (Kind.RETRY, "kafka_cluster_not_authorized"),
    33: (Kind.RETRY, "kafka_sasl_mechanism"),
    34: (Kind.RETRY, "kafka_security_protocol"),
    44: (Kind.RETRY, "kafka_policy"),
    45: (Kind.RETRY, "kafka_producer_state"),
    46: (Kind.RETRY, "kafka_producer_state"),
    47: (Kind.RETRY, "kafka_producer_state"),
    49: (Kind.RETRY, "kafka_producer_state"),
    56: (Kind.RETRY, "kafka_storage"),
    58: (Kind.RETRY, "kafka_authentication"),
    59: (Kind.RETRY, "kafka_producer_state"),
    87: (Kind.POISON, "invalid_record"),
    90: (Kind.RETRY, "kafka_producer_state"),
}
_NAMED_BY_TOPIC = {3, 5, 6, 10, 17, 18, 19, 20, 29, 31, 44, 87}


@pytest.mark.parametrize(("code", "expected"), _KAFKA.items())
def test_every_known_code_has_its_meaning_and_repeats_nothing_it_was_told(
    code: int, expected: tuple[Kind, str]
) -> None:
    failure = kafka_failure(code, for_code(code).__name__, _SECRET, topic="orders{0}")
    assert (failure.kind, failure.reason.code) == expected
    assert failure.too_large == (expected[1] == "message_too_large")
    assert _SECRET not in failure.reason.detail
    assert ("'orders{0}'" in failure.reason.detail) == (code in _NAMED_BY_TOPIC)


@settings(deadline=None)
@given(code=st.integers(-1, 200).filter(lambda code: code not in _KAFKA))
def test_a_code_without_a_known_meaning_is_named_and_never_dropped_for_it(code: int) -> None:
    failure = kafka_failure(code, "SomethingNew", "[Error 99] SomethingNew", topic="orders")
    assert failure.kind is Kind.UNNAMED
    assert failure.reason.code == "kafka_error"
    assert f"error {code} " in failure.reason.detail
    assert "'orders'" in failure.reason.detail
    assert not failure.too_large


@pytest.mark.parametrize(
    ("text", "detail"),
    [
        ("", "KafkaTimeoutError"),
        ("  ", "KafkaTimeoutError"),
        ("KafkaTimeoutError", "KafkaTimeoutError"),
        ("KafkaTimeoutError: ", "KafkaTimeoutError"),
        (" no brokers ", "KafkaTimeoutError: no brokers"),
    ],
)
def test_without_a_code_the_client_gave_up_and_tries_again(text: str, detail: str) -> None:
    failure = kafka_failure(None, "KafkaTimeoutError", text, topic="orders")
    assert failure.kind is Kind.RETRY
    assert failure.reason.code == "kafka_unavailable"
    assert failure.reason.detail == detail


_MQTT = {
    0x81: "mqtt_protocol",
    0x82: "mqtt_protocol",
    0x84: "mqtt_protocol_version",
    0x85: "mqtt_client_id",
    0x86: "mqtt_authentication",
    0x87: "mqtt_not_authorized",
    0x88: "mqtt_unavailable",
    0x89: "mqtt_busy",
    0x8A: "mqtt_banned",
    0x8B: "mqtt_shutdown",
    0x8C: "mqtt_authentication",
    0x8D: "mqtt_keep_alive",
    0x8E: "mqtt_takeover",
    0x93: "mqtt_receive_maximum",
    0x95: "mqtt_packet_too_large",
    0x97: "mqtt_quota",
    0x98: "mqtt_administrative",
    0x9C: "mqtt_moved",
    0x9D: "mqtt_moved",
    0x9F: "mqtt_rate",
    0xA0: "mqtt_connect_time",
}


@settings(deadline=None, max_examples=300)
@given(code=st.integers(0x80, 0xFF))
def test_every_mqtt_5_code_has_a_reason_that_shows_it(code: int) -> None:
    reason = mqtt_reason(code)
    assert reason.code == _MQTT.get(code, "mqtt_refused")
    assert reason.detail.endswith(f"(0x{code:02X})")


def test_the_brokers_own_words_are_quoted_on_one_line() -> None:
    reason = mqtt_reason(0x87, "no such\nuser")
    assert reason.detail == (
        r"the broker does not authorize this client; check mqtt.credentials and its rules "
        r"(0x87, it says 'no such\nuser')"
    )


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (1, "mqtt_protocol_version"),
        (2, "mqtt_client_id"),
        (3, "mqtt_unavailable"),
        (4, "mqtt_authentication"),
        (5, "mqtt_not_authorized"),
        (6, "mqtt_refused"),
        (255, "mqtt_refused"),
    ],
)
def test_every_mqtt_311_code_has_a_reason_that_shows_it(code: int, expected: str) -> None:
    reason = mqtt_311_reason(code)
    assert reason.code == expected
    assert reason.detail.endswith(f"(return code {code})")


def test_every_refused_filter_is_named_with_its_code() -> None:
    reason = subscription_refused({"a/#": 0x87, "b": 0x80, "c": 0xFE})
    assert reason.code == "mqtt_subscription_refused"
    assert reason.detail == (
        "the broker refuses the subscription to 'a/#' (not authorized, 0x87), 'b' (unspecified error, 0x80), "
        "'c' (refused, 0xFE)"
    )


@pytest.mark.parametrize("code", [0x80, 0x83, 0x87, 0x8F, 0x91, 0x97, 0x9E, 0xA1, 0xA2])
def test_every_suback_code_is_explained(code: int) -> None:
    assert "(refused," not in subscription_refused({"a": code}).detail
