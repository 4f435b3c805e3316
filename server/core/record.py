"""MQTT message -> Kafka record: compiled once per mapping, and once more per MQTT topic.

Everything of a record but its value depends on the mapping and the MQTT topic alone, so it is computed once per
topic and kept (a Route); per message only the value is left to do.
"""

from __future__ import annotations

import json
from base64 import b64encode
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from server.core.template import Template, compile_template

if TYPE_CHECKING:
    from collections.abc import Sequence

    from server.core.mapping import Mapping

# A list, because aiokafka takes nothing else.
Headers: TypeAlias = "list[tuple[str, bytes]]"

# Kafka's record format v2: a batch's header, and the most that a record's own lengths and deltas can take.
BATCH_OVERHEAD_BYTES = 61
RECORD_OVERHEAD_BYTES = 21
_HEADER_OVERHEAD_BYTES = 10


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


def size_of(key: bytes | None, value: bytes, headers: Sequence[tuple[str, bytes]]) -> int:
    """The size of a batch that holds this record alone, at most (bytes)."""
    size = BATCH_OVERHEAD_BYTES + RECORD_OVERHEAD_BYTES + len(value) + (len(key) if key else 0)
    for name, content in headers:
        size += len(name.encode()) + len(content) + _HEADER_OVERHEAD_BYTES
    return size


def dead_letter_headers(*, mapping: str, topic: str, reason: str, detail: str) -> Headers:
    """What a dead letter says about itself; its value is the message's original payload."""
    return [
        ("dead_letter.reason", reason.encode()),
        ("dead_letter.detail", detail.encode()),
        ("dead_letter.mapping", mapping.encode()),
        ("mqtt.topic", topic.encode()),
    ]
