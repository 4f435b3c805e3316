"""The mapping object and its validation."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import ValidationError

from server.core.mapping import Mapping, OnPoison


def _mapping(**changes: Any) -> Mapping:
    document: dict[str, Any] = {"name": "m", "mqtt": {"topic": "a/#"}, "kafka": {"topic": "k"}}
    return Mapping.model_validate(document | changes)


def test_the_defaults_are_those_of_the_design() -> None:
    mapping = _mapping()

    assert not mapping.paused
    assert mapping.mqtt.qos == 1
    assert mapping.mqtt.receive_maximum == 65_534
    assert mapping.kafka.key == "{topic}"
    assert mapping.kafka.headers == {}
    assert not mapping.wrap_as_json
    assert mapping.on_poison is OnPoison.STOP
    assert mapping.buffer_bytes == 32 * 1024 * 1024


def test_a_mapping_survives_the_way_through_its_document() -> None:
    mapping = _mapping(
        mqtt={"topic": ["a", "b"], "qos": 2, "client_id": "c"},
        kafka={"topic": "k", "key": None, "headers": {"h": "{mapping}"}},
        on_poison="dead_letter",
        dead_letter_topic="dead",
    )

    assert Mapping.model_validate(json.loads(json.dumps(mapping.document()))) == mapping


@pytest.mark.parametrize(
    ("topic", "filters"),
    [("a", ("a",)), (["a", "b"], ("a", "b")), (["a/b", "a/#", "a/b"], ("a/#",))],
)
def test_filters_that_another_covers_are_not_subscribed(topic: str | list[str], filters: tuple[str, ...]) -> None:
    assert _mapping(mqtt={"topic": topic}).mqtt.filters == filters


@pytest.mark.parametrize(
    ("own", "base", "expected"),
    [(None, "base", "base-m"), (None, "", ""), ("own", "base", "own"), ("", "base", "")],
)
def test_the_client_id_is_the_mappings_own_or_made_from_the_connections(
    own: str | None, base: str, expected: str
) -> None:
    assert _mapping(mqtt={"topic": "a", "client_id": own}).client_id(base) == expected


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"name": ""}, "at least 1 character"),
        ({"name": "x" * 129}, "at most 128 characters"),
        ({"name": "a\nb"}, "control characters"),
        ({"name": ".."}, "must not be"),
        ({"mqtt": {"topic": ""}}, "at least one topic filter"),
        ({"mqtt": {"topic": []}}, "at least one topic filter"),
        ({"mqtt": {"topic": ["a", "b#"]}}, "'b#': '#' must stand alone"),
        ({"mqtt": {"topic": "a", "qos": 3}}, "0, 1 or 2"),
        ({"mqtt": {"topic": "a", "receive_maximum": 0}}, "greater than or equal to 1"),
        ({"mqtt": {"topic": "a", "receive_maximum": 65_535}}, "less than or equal to 65534"),
        ({"mqtt": {"topic": "a", "client_id": "a\0"}}, "a client id must not contain the null character"),
        ({"mqtt": {"topic": "a", "client_id": "ü" * 32_768}}, "a client id may have at most 65535 bytes"),
        (
            {"mqtt": {"topic": "a", "client_id": "c" * 1_025}},
            "a client id may have at most 1024 bytes, this one has 1025",
        ),
        ({"kafka": {"topic": "a/b"}}, "may only contain ASCII"),
        ({"kafka": {"topic": "k", "key": "{payload}"}}, "unknown placeholder"),
        ({"kafka": {"topic": "k", "key": "\ud800"}}, "valid Unicode"),
        ({"kafka": {"topic": "k", "headers": {"h": "{"}}}, "brace"),
        ({"kafka": {"topic": "k", "headers": {"": "a"}}}, "header name must not be empty"),
        ({"kafka": {"topic": "k", "headers": {"\ud800": "a"}}}, "valid Unicode"),
        ({"kafka": {"topic": "k", "headers": {"h": "\ud800"}}}, "valid Unicode"),
        ({"on_poison": "dead_letter"}, "needs a dead_letter_topic"),
        ({"dead_letter_topic": "a b"}, "may only contain ASCII"),
        ({"dead_letter_topic": "k"}, "must differ from kafka.topic"),
        ({"buffer_bytes": 1023}, "greater than or equal to 1024"),
        ({"surprise": 1}, "not permitted"),
    ],
)
def test_an_invalid_mapping_is_refused_with_the_reason(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValidationError) as refused:
        _mapping(**changes)

    assert any(reason in error["msg"] for error in refused.value.errors())


def test_a_mapping_cannot_be_changed_in_place() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        _mapping().name = "other"  # type: ignore[misc]
