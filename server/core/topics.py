"""MQTT topic filters and Kafka topic names: validity, matching, cover, overlap.

Sources: MQTT 5.0 section 4.7 (filters and names), Kafka's `Topic.validate` (names).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

MAX_MQTT_TOPIC_BYTES = 65_535
MAX_CLIENT_ID_BYTES = 1_024
MAX_KAFKA_TOPIC_LENGTH = 249

_KAFKA_TOPIC = re.compile(r"[a-zA-Z0-9._-]+")


def mqtt_string_error(text: str, what: str) -> str | None:
    """Why this can't be sent as an MQTT string, or None (MQTT 5.0, 1.5.4); `what` names it, the text is not shown."""
    if "\0" in text:
        return f"{what} must not contain the null character"
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        return f"{what} must be valid UTF-8"
    if size > MAX_MQTT_TOPIC_BYTES:
        return f"{what} may have at most {MAX_MQTT_TOPIC_BYTES} bytes, this one has {size}"
    return None


def client_id_error(client_id: str) -> str | None:
    """Why this can't be an MQTT client id, or what one begins with, or None.

    MQTT allows 65,535 bytes and no broker wants them. The store has it in an index, where Postgres takes 2,700 with the
    mapping's name.
    """
    if error := mqtt_string_error(client_id, "a client id"):
        return error
    size = len(client_id.encode())
    if size > MAX_CLIENT_ID_BYTES:
        return f"a client id may have at most {MAX_CLIENT_ID_BYTES} bytes, this one has {size}"
    return None


def filter_error(topic_filter: str) -> str | None:
    """Why this is not a topic filter the forwarder can subscribe to, or None (MQTT 5.0, 4.7.1)."""
    if not topic_filter:
        return "a topic filter must not be empty"
    if error := mqtt_string_error(topic_filter, "a topic filter"):
        return error
    if topic_filter.startswith("$share/"):
        return "shared subscriptions ($share/...) are not supported: they lose the order of messages"
    levels = topic_filter.split("/")
    for number, level in enumerate(levels, start=1):
        if "#" in level and (level != "#" or number != len(levels)):
            return f"'#' must stand alone in the last level, but level {number} is {level!r}"
        if "+" in level and level != "+":
            return f"'+' must stand alone in its level, but level {number} is {level!r}"
    return None


def kafka_topic_error(topic: str) -> str | None:
    """Why Kafka would refuse this topic name, or None."""
    if not topic:
        return "a Kafka topic name must not be empty"
    if topic in {".", ".."}:
        return f"a Kafka topic can't be named {topic!r}"
    if len(topic) > MAX_KAFKA_TOPIC_LENGTH:
        return f"a Kafka topic name may have at most {MAX_KAFKA_TOPIC_LENGTH} characters, this one has {len(topic)}"
    if not _KAFKA_TOPIC.fullmatch(topic):
        return "a Kafka topic name may only contain ASCII letters, digits, '.', '_' and '-'"
    return None


def matches(topic_filter: str, topic: str) -> bool:
    """Whether a message published to `topic` is delivered to a subscription on `topic_filter`."""
    wanted, given = topic_filter.split("/"), topic.split("/")
    if given[0].startswith("$") and wanted[0] in {"#", "+"}:
        return False  # MQTT-4.7.2-1
    for index, level in enumerate(wanted):
        if level == "#":
            return True
        if index == len(given) or level not in {"+", given[index]}:
            return False
    return len(wanted) == len(given)


def covers(wide: str, narrow: str) -> bool:
    """Whether every topic that matches `narrow` also matches `wide`."""
    # Every topic has a first level; and "/#" does not stand for the empty topic, which is none (MQTT-4.7.3-1).
    if (wide, narrow) == ("+/#", "#") or (narrow == "/#" and wide in {"/+/#", "+/+/#"}):
        return True
    wide_levels, narrow_levels = wide.split("/"), narrow.split("/")
    if narrow_levels[0].startswith("$") and wide_levels[0] in {"#", "+"}:
        return False
    for index, level in enumerate(wide_levels):
        if level == "#":
            return True
        if index == len(narrow_levels):
            return False
        other = narrow_levels[index]
        if other == "#" or level not in {"+", other}:
            return False
    return len(wide_levels) == len(narrow_levels)


def overlap(first: str, second: str) -> bool:
    """Whether some topic matches both filters."""
    a, b = first.split("/"), second.split("/")
    for one, other in ((a[0], b[0]), (b[0], a[0])):
        if one.startswith("$") and other in {"#", "+"}:
            return False
    for index in range(max(len(a), len(b))):
        # "a/#" also matches "a" (MQTT-4.7.1-2), so a '#' one level past the other's end still meets it; but "/#" and
        # "+" would meet only in the empty topic, which is none (MQTT-4.7.3-1).
        if (index < len(a) and a[index] == "#") or (index < len(b) and b[index] == "#"):
            return index != 1 or min(len(a), len(b)) > 1 or "" not in {a[0], b[0]}
        if index == len(a) or index == len(b):
            return False
        if "+" not in {a[index], b[index]} and a[index] != b[index]:
            return False
    return True


def uncovered(filters: Iterable[str]) -> tuple[str, ...]:
    """The filters to subscribe: those that no other covers, in the given order; of equals the first."""
    distinct = tuple(dict.fromkeys(filters))
    return tuple(
        candidate
        for index, candidate in enumerate(distinct)
        if not any(
            covers(other, candidate) and (position < index or not covers(candidate, other))
            for position, other in enumerate(distinct)
            if position != index
        )
    )


def any_overlap(filters: Sequence[str]) -> bool:
    """Whether one message can match two of the filters."""
    return any(overlap(a, b) for index, a in enumerate(filters) for b in filters[index + 1 :])
