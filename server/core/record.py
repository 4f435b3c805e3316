"""MQTT message -> Kafka record: compiled once per mapping, and once more per MQTT topic.

Everything of a record but its value depends on the mapping and the MQTT topic alone, so it is computed once per
topic and kept (a Route); per message only the value is left to do.
"""

from __future__ import annotations

import json
from base64 import b64encode
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeAlias, runtime_checkable

from server.core.template import Template, compile_template

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from server.core.acks import Delivery
    from server.core.mapping import Mapping

# A list, because aiokafka takes nothing else.
Headers: TypeAlias = "list[tuple[str, bytes]]"

# Kafka's record format v2: a batch's header, and the most that a record's own lengths and deltas can take.
BATCH_OVERHEAD_BYTES = 61
RECORD_OVERHEAD_BYTES = 21
_HEADER_OVERHEAD_BYTES = 10


@runtime_checkable
class WithProperties(Protocol):
    """What a message of MQTT 5 brings along; one of 3.1.1 has none of it."""

    content_type: str | None
    response_topic: str | None
    correlation_data: bytes | None
    message_expiry_interval: int | None
    payload_format_indicator: int
    user_properties: Sequence[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Route:
    """How messages of one MQTT topic become records.

    `placement` chooses the partition. Without a key it is the MQTT topic, so that order per topic is kept.
    """

    topic: str
    key: bytes | None
    placement: bytes
    headers: Headers
    envelope: bytes | None

    def value(self, payload: bytes) -> bytes:
        """The record's value: the payload, or the seed's JSON envelope around its base64."""
        return payload if self.envelope is None else b'%b%b"}' % (self.envelope, b64encode(payload))

    def value_bytes(self, payload: bytes) -> int:
        """The size of that value, without making it: of a payload that is far too large it would take a lot."""
        if self.envelope is None:
            return len(payload)
        return len(self.envelope) + (len(payload) + 2) // 3 * 4 + len(b'"}')


@dataclass(frozen=True, slots=True)
class RecordShape:
    """A mapping's rules for its records."""

    key: Template | None
    headers: tuple[tuple[str, Template], ...]
    wrap_as_json: bool

    def route(self, topic: str) -> Route:
        """The route of one MQTT topic.

        Raises:
            NotMappableError: a template needs a level that the topic has not.
        """
        name = topic.encode()
        key = None if self.key is None else self.key.render(topic).encode()
        return Route(
            topic=topic,
            key=key,
            placement=name if key is None else key,
            headers=[(header, template.render(topic).encode()) for header, template in self.headers],
            envelope=_envelope(topic) if self.wrap_as_json else None,
        )


def _envelope(topic: str) -> bytes:
    """The seed's wrapping up to the payload: compact, topic first, UTF-8 unescaped."""
    return b'{"topic":%b,"payload":"' % json.dumps(topic, ensure_ascii=False).encode()


def compile_record(mapping: Mapping) -> RecordShape:
    """The record rules of a mapping."""
    return RecordShape(
        key=None if mapping.kafka.key is None else compile_template(mapping.kafka.key, mapping.name),
        headers=tuple(
            (name, compile_template(template, mapping.name)) for name, template in mapping.kafka.headers.items()
        ),
        wrap_as_json=mapping.wrap_as_json,
    )


def size_of(key: bytes | None, value_bytes: int, headers: Sequence[tuple[str, bytes]]) -> int:
    """The size of a batch that holds this record alone, at most (bytes); of its value only the size matters."""
    size = BATCH_OVERHEAD_BYTES + RECORD_OVERHEAD_BYTES + value_bytes + (len(key) if key else 0)
    for name, content in headers:
        size += len(name.encode()) + len(content) + _HEADER_OVERHEAD_BYTES
    return size


def dead_letter_headers(message: Delivery, *, mapping: str, reason: str, detail: str, at: datetime) -> Headers:
    """What a dead letter says about itself; its value is the message's original payload.

    What the message brought along is in headers that begin with `mqtt.`; over MQTT 3.1.1 that is its topic alone.
    """
    headers = [
        ("dead_letter.reason", reason.encode()),
        ("dead_letter.detail", detail.encode()),
        ("dead_letter.mapping", mapping.encode()),
        ("dead_letter.time", at.isoformat(timespec="milliseconds").encode()),
        ("mqtt.topic", message.topic.encode()),
    ]
    return headers + _property_headers(message) if isinstance(message, WithProperties) else headers


def _property_headers(message: WithProperties) -> Headers:
    """The MQTT 5 properties that a message has (MQTT 5.0, 3.3.2.3); a user property for each of its occurrences."""
    found: list[tuple[str, str | bytes | int | None]] = [
        ("mqtt.content_type", message.content_type),
        ("mqtt.response_topic", message.response_topic),
        ("mqtt.correlation_data", message.correlation_data),
        ("mqtt.message_expiry_interval", message.message_expiry_interval),
        ("mqtt.payload_format_indicator", message.payload_format_indicator or None),
        *((f"mqtt.user_property.{name}", value) for name, value in message.user_properties),
    ]
    return [
        (header, value if isinstance(value, bytes) else str(value).encode())
        for header, value in found
        if value is not None
    ]
