"""MQTT message -> Kafka record."""

from __future__ import annotations

import json
from base64 import b64decode, b64encode
from datetime import UTC, datetime
from typing import Any

import mqtt5
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.core.mapping import Mapping
from server.core.record import compile_record, dead_letter_headers, size_of
from server.core.template import NotMappableError
from tests.fakemqtt import FakeMessage

# What MQTT can carry: any Unicode but the null character, which serde_json would escape like other controls.
_topics = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30)
# serde_json's table: everything else below 0x20 is \u00xx in lower case, everything above stays as it is.
_SHORT = {'"': '\\"', "\\": "\\\\", "\b": "\\b", "\f": "\\f", "\n": "\\n", "\r": "\\r", "\t": "\\t"}


def _mapping(name: str = "m", *, wrap_as_json: bool = False, **kafka: Any) -> Mapping:
    return Mapping.model_validate(
        {"name": name, "mqtt": {"topic": "#"}, "kafka": {"topic": "t", **kafka}, "wrap_as_json": wrap_as_json}
    )


def _serde_json(text: str) -> str:
    return '"' + "".join(_SHORT.get(char, f"\\u{ord(char):04x}" if char < " " else char) for char in text) + '"'


def test_by_default_the_key_is_the_topic_and_the_value_the_payload() -> None:
    route = compile_record(_mapping()).route("a/ä")
    assert route.topic == "a/ä"
    assert route.key == route.placement == "a/ä".encode()
    assert list(route.headers) == []
    assert route.value(b"\x00\xff") == b"\x00\xff"


def test_without_a_key_the_mqtt_topic_places_the_record() -> None:
    route = compile_record(_mapping(key=None)).route("a/b")
    assert route.key is None
    assert route.placement == b"a/b"


def test_an_empty_key_is_a_key() -> None:
    route = compile_record(_mapping(key="")).route("a/b")
    assert route.key == route.placement == b""


def test_key_and_headers_are_templates() -> None:
    shape = compile_record(
        _mapping("röhre", key="{mapping}/{topic[1]}", headers={"from": "{topic}", "level": "{topic[0]}", "fix": "x"})
    )
    route = shape.route("a/b/c")
    assert route.key == route.placement == "röhre/b".encode()
    assert list(route.headers) == [("from", b"a/b/c"), ("level", b"a"), ("fix", b"x")]


@pytest.mark.parametrize("kafka", [{"key": "{topic[2]}"}, {"headers": {"h": "{topic[2]}"}}])
def test_a_topic_without_the_level_asked_for_is_not_mappable(kafka: dict[str, Any]) -> None:
    with pytest.raises(NotMappableError, match="needs topic level 2, but 'a/b' has only levels 0 to 1"):
        compile_record(_mapping(**kafka)).route("a/b")


def test_the_envelope_is_the_seeds() -> None:
    route = compile_record(_mapping(wrap_as_json=True)).route("foo/bar")
    assert route.value(b"hello") == b'{"topic":"foo/bar","payload":"aGVsbG8="}'
    assert route.value(b"") == b'{"topic":"foo/bar","payload":""}'


def test_the_envelope_escapes_what_serde_json_escapes_and_nothing_else() -> None:
    topic = "".join(map(chr, range(1, 0x30))) + "\\/\x7f\x80é\u2028\u2029😀%b{}"
    route = compile_record(_mapping(wrap_as_json=True)).route(topic)
    assert route.value(b"") == (
        rb'{"topic":"\u0001\u0002\u0003\u0004\u0005\u0006\u0007\b\t\n\u000b\f\r\u000e\u000f'
        rb"\u0010\u0011\u0012\u0013\u0014\u0015\u0016\u0017\u0018\u0019\u001a\u001b\u001c\u001d\u001e\u001f"
        rb" !\"#$%&" + b"'()*+,-./" + rb"\\/" + "\x7f\x80é\u2028\u2029😀%b{}".encode() + b'","payload":""}'
    )


@settings(deadline=None)
@given(topic=_topics, payload=st.binary(max_size=100))
def test_the_envelope_is_serde_jsons_byte_for_byte_and_says_what_was_sent(topic: str, payload: bytes) -> None:
    route = compile_record(_mapping(wrap_as_json=True)).route(topic)
    value = route.value(payload)
    assert len(value) == route.value_bytes(payload)
    assert value == f'{{"topic":{_serde_json(topic)},"payload":"{b64encode(payload).decode()}"}}'.encode()
    read = json.loads(value)
    assert read["topic"] == topic
    assert b64decode(read["payload"], validate=True) == payload


def test_every_part_of_a_record_counts() -> None:
    empty = size_of(None, 0, ())
    assert size_of(b"", 0, ()) == empty
    assert size_of(b"key", 5, ()) == empty + 8
    assert size_of(None, 0, [("ä", b"12")]) == size_of(None, 0, [("", b"")]) + 4


AT = datetime(2026, 7, 1, 12, 30, 15, 250_000, tzinfo=UTC)
WHY: dict[str, Any] = {"mapping": "m", "reason": "too_large", "detail": "ß", "at": AT}


def test_a_dead_letter_says_where_it_is_from_when_and_why() -> None:
    assert dead_letter_headers(FakeMessage("a/ä"), **WHY) == [
        ("dead_letter.reason", b"too_large"),
        ("dead_letter.detail", "ß".encode()),
        ("dead_letter.mapping", b"m"),
        ("dead_letter.time", b"2026-07-01T12:30:15.250+00:00"),
        ("mqtt.topic", "a/ä".encode()),
    ]


def test_a_dead_letter_carries_the_properties_of_mqtt_5() -> None:
    message = mqtt5.PublishPacket(
        "t",
        b"",
        content_type="text/plain",
        response_topic="answers",
        correlation_data=b"\x00\xff",
        message_expiry_interval=0,
        payload_format_indicator=1,
        user_properties=[("a", "1"), ("b", "ß"), ("a", "2")],
    )
    assert dead_letter_headers(message, **WHY)[5:] == [
        ("mqtt.content_type", b"text/plain"),
        ("mqtt.response_topic", b"answers"),
        ("mqtt.correlation_data", b"\x00\xff"),
        ("mqtt.message_expiry_interval", b"0"),
        ("mqtt.payload_format_indicator", b"1"),
        ("mqtt.user_property.a", b"1"),
        ("mqtt.user_property.b", "ß".encode()),
        ("mqtt.user_property.a", b"2"),
    ]


def test_a_dead_letter_names_no_property_the_message_has_not() -> None:
    assert dead_letter_headers(mqtt5.PublishPacket("t", b""), **WHY)[5:] == []
