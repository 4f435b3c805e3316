"""What a failure means: try again, poison, or something only an operator can mend; and how to name it.

The codes are Kafka's (protocol guide, "Error Codes") and MQTT 5's (section 2.4). Every reason code is stable: it
stands in the status and in metrics.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto

from server.core.lifecycle import Reason


class Kind(Enum):
    """What to do about a batch that Kafka refused."""

    RETRY = auto()  # everything an operator or time can mend while we wait
    POISON = auto()  # a record is refused for its own sake, and always will be
    UNNAMED = auto()  # a code without a known meaning: after some attempts, find the record that brings it
    INVALID_TOPIC = auto()  # the topic's name can never exist


@dataclass(frozen=True, slots=True)
class Failure:
    """A classified failure."""

    kind: Kind
    reason: Reason
    too_large: bool = False


MESSAGE_TOO_LARGE = 10
_TOO_LARGE = frozenset({MESSAGE_TOO_LARGE, 18})
_INVALID_TOPIC = 17
_POISON = {
    10: ("message_too_large", "Kafka refused the record as larger than the topic's max.message.bytes"),
    18: ("message_too_large", "Kafka refused the batch as larger than a log segment"),
    87: ("invalid_record", "Kafka refused the record as invalid (for example no key on a compacted topic)"),
}
_RETRY = {
    3: ("kafka_topic_missing", "the topic {topic!r} does not exist, or may not be seen; create it"),
    5: ("kafka_no_leader", "a partition of {topic!r} has no leader; check the Kafka brokers"),
    6: ("kafka_no_leader", "the leader of a partition of {topic!r} is moving"),
    7: ("kafka_timeout", "Kafka did not answer in time"),
    19: ("kafka_not_enough_replicas", "{topic!r} has fewer in-sync replicas than min.insync.replicas"),
    20: ("kafka_not_enough_replicas", "{topic!r} has fewer in-sync replicas than min.insync.replicas"),
    29: ("kafka_not_authorized", "not authorized to write to {topic!r}; grant WRITE and DESCRIBE on it"),
    31: (
        "kafka_cluster_not_authorized",
        "not authorized for idempotent writes; grant WRITE on {topic!r}, and before Kafka 2.8 IDEMPOTENT_WRITE too",
    ),
    33: ("kafka_sasl_mechanism", "Kafka does not offer this sasl.mechanism"),
    34: ("kafka_security_protocol", "the listener does not expect a login; check security.protocol"),
    44: ("kafka_policy", "a policy of the Kafka cluster refused the write to {topic!r}"),
    56: ("kafka_storage", "a Kafka broker can't write to its disk"),
    58: ("kafka_authentication", "Kafka refused the credentials"),
}
# Codes that mean the producer's own state is of no use any more: a new producer mends them.
_PRODUCER_STATE = frozenset({45, 46, 47, 49, 59, 90})


# What the client itself gives up with, by the name of its class.
_CLIENT = {
    "KafkaConnectionError": ("kafka_unreachable", "no connection to Kafka at {servers}"),
    "TimeoutError": ("kafka_timeout", "Kafka at {servers} did not answer in time"),
    "AuthenticationFailedError": ("kafka_authentication", "Kafka at {servers} refused the credentials"),
}


def kafka_failure(code: int | None, name: str, text: str, *, topic: str, servers: str = "") -> Failure:
    """Classify a failed batch, or a failed start.

    `code` is Kafka's error code, None where the client itself gave up; `name` is the error's class, `text` what it
    says, `servers` where it was to connect.
    """
    if code in _POISON:
        reason, explanation = _POISON[code]
        return Failure(Kind.POISON, Reason(reason, f"{explanation} (topic {topic!r})"), too_large=code in _TOO_LARGE)
    if code == _INVALID_TOPIC:
        return Failure(Kind.INVALID_TOPIC, Reason("kafka_invalid_topic", f"Kafka refuses the topic name {topic!r}"))
    if code in _RETRY:
        reason, explanation = _RETRY[code]
        return Failure(Kind.RETRY, Reason(reason, f"{explanation.format(topic=topic)} ({name})"))
    if code in _PRODUCER_STATE:
        return Failure(Kind.RETRY, Reason("kafka_producer_state", f"Kafka forgot the producer's state ({name})"))
    if code is None:
        return Failure(Kind.RETRY, _client_reason(name, text, servers))
    return Failure(
        Kind.UNNAMED, Reason("kafka_error", f"Kafka answered {topic!r} with error {code} ({_sentence(name, text)})")
    )


def partition_gone(partition: int, *, topic: str) -> Failure:
    """A batch is on its way to a partition that the topic does not have any more."""
    detail = f"partition {partition} of {topic!r} is gone: the topic was created again with fewer partitions"
    return Failure(Kind.RETRY, Reason("kafka_partition_gone", detail))


def _client_reason(name: str, text: str, servers: str) -> Reason:
    if name in _CLIENT:
        reason, explanation = _CLIENT[name]
        return Reason(reason, explanation.format(servers=servers))
    return Reason("kafka_unavailable", _sentence(name, text))


def _sentence(name: str, text: str) -> str:
    text = text.strip()
    return f"{name}: {text}" if text not in {"", name, f"{name}:"} else name


# MQTT 5.0, 3.2.2.2 (CONNACK) and 3.14.2.1 (DISCONNECT).
SESSION_TAKEN_OVER = 0x8E
UNSUPPORTED_PROTOCOL_VERSION = 0x84
_MQTT_CODES = {
    0x81: ("mqtt_protocol", "the broker calls our packet malformed"),
    0x82: ("mqtt_protocol", "the broker reports a protocol error"),
    0x84: ("mqtt_protocol_version", "the broker does not speak MQTT 5"),
    0x85: ("mqtt_client_id", "the broker refuses the client id"),
    0x86: ("mqtt_authentication", "the broker refuses the user name or password"),
    0x87: ("mqtt_not_authorized", "the broker does not authorize this client; check mqtt.credentials and its rules"),
    0x88: ("mqtt_unavailable", "the broker says it is unavailable"),
    0x89: ("mqtt_busy", "the broker says it is busy"),
    0x8A: ("mqtt_banned", "the broker has banned this client"),
    0x8B: ("mqtt_shutdown", "the broker is shutting down"),
    0x8C: ("mqtt_authentication", "the broker does not support the authentication method"),
    0x8D: ("mqtt_keep_alive", "the broker missed our keep alive"),
    0x8E: ("mqtt_takeover", "another client uses the client id; give every client an id of its own"),
    0x93: ("mqtt_receive_maximum", "the broker says we exceeded its receive maximum"),
    0x95: ("mqtt_packet_too_large", "the broker calls our packet too large"),
    0x97: ("mqtt_quota", "a quota of the broker is exceeded"),
    0x98: ("mqtt_administrative", "the broker's administrator closed the connection"),
    0x9C: ("mqtt_moved", "the broker asks to use another server"),
    0x9D: ("mqtt_moved", "the broker has moved"),
    0x9F: ("mqtt_rate", "the broker limits the rate of connections"),
    0xA0: ("mqtt_connect_time", "the broker limits the time of a connection"),
}
_MQTT_SUBACK_CODES = {
    0x80: "unspecified error",
    0x83: "implementation specific error",
    0x87: "not authorized",
    0x8F: "topic filter invalid",
    0x91: "packet identifier in use",
    0x97: "quota exceeded",
    0x9E: "shared subscriptions not supported",
    0xA1: "subscription identifiers not supported",
    0xA2: "wildcard subscriptions not supported",
}
# MQTT 3.1.1, 3.2.2.3.
_MQTT_311_CODES = {
    1: ("mqtt_protocol_version", "the broker does not speak MQTT 3.1.1"),
    2: ("mqtt_client_id", "the broker refuses the client id"),
    3: ("mqtt_unavailable", "the broker says it is unavailable"),
    4: ("mqtt_authentication", "the broker refuses the user name or password"),
    5: ("mqtt_not_authorized", "the broker does not authorize this client; check mqtt.credentials and its rules"),
}


def mqtt_reason(code: int, text: str | None = None) -> Reason:
    """The reason behind an MQTT 5 CONNACK or DISCONNECT reason code; `text` is the broker's own reason string."""
    short, explanation = _MQTT_CODES.get(code, ("mqtt_refused", "the broker refuses"))
    said = f", it says {text!r}" if text else ""
    return Reason(short, f"{explanation} (0x{code:02X}{said})")


def mqtt_311_reason(code: int) -> Reason:
    """The reason behind an MQTT 3.1.1 CONNACK return code."""
    short, explanation = _MQTT_311_CODES.get(code, ("mqtt_refused", "the broker refuses"))
    return Reason(short, f"{explanation} (return code {code})")


def subscription_refused(refused: dict[str, int]) -> Reason:
    """The reason when a SUBACK refuses filters; the values are its reason codes."""
    listed = ", ".join(
        f"{topic_filter!r} ({_MQTT_SUBACK_CODES.get(code, 'refused')}, 0x{code:02X})"
        for topic_filter, code in refused.items()
    )
    return Reason("mqtt_subscription_refused", f"the broker refuses the subscription to {listed}")
