"""The preview: which record a message would become, or why none."""

from __future__ import annotations

import json
from base64 import b64encode
from typing import TYPE_CHECKING, Any

import pytest

from tests.unit.api_under_test import Api, api_under_test, document, pointers

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

NOTHING = {"why": None, "record": None, "partition": None, "poison": None, "on_poison": None}


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[Api]:
    async with api_under_test(tmp_path) as running:
        yield running


async def preview(api: Api, message: dict[str, Any], **mapping: Any) -> dict[str, Any]:
    response = await api.http.post("/api/v1/preview", json={"mapping": document(**mapping), "message": message})
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    return found


async def test_a_text_payload_becomes_the_value_as_it_is(api: Api) -> None:
    kafka = {"topic": "t", "key": "{topic[1]}", "headers": {"from": "{mapping}"}}
    found = await preview(api, {"topic": "plant/1", "payload": "21,5 °C", "qos": 2, "retain": True}, kafka=kafka)
    size = found["record"].pop("size")
    assert found == NOTHING | {
        "matched": True,
        "record": {
            "topic": "t",
            "key": "1",
            "headers": {"from": "plant"},
            "value": "21,5 °C",
            "value_base64": b64encode("21,5 °C".encode()).decode(),
        },
    }
    assert size > len("21,5 °C".encode())
    assert await api.store.mappings() == []


async def test_a_binary_payload_is_shown_as_base64_only(api: Api) -> None:
    message = {"topic": "plant/1", "payload_base64": "//4="}
    record = (await preview(api, message, kafka={"topic": "t", "key": None}))["record"]
    assert (record["key"], record["value"], record["value_base64"]) == (None, None, "//4=")


async def test_a_message_without_payload_is_empty(api: Api) -> None:
    assert (await preview(api, {"topic": "plant"}))["record"]["value"] == ""


async def test_wrapping_is_shown_as_kafka_would_get_it(api: Api) -> None:
    record = (await preview(api, {"topic": "plant/1", "payload": "x"}, wrap_as_json=True))["record"]
    assert json.loads(record["value"]) == {"topic": "plant/1", "payload": "eA=="}


async def test_a_topic_that_no_filter_matches_is_told_why(api: Api) -> None:
    found = await preview(api, {"topic": "other"}, mqtt={"topic": ["a/+", "b"]})
    assert found == NOTHING | {"matched": False, "why": "the topic 'other' matches none of 'a/+', 'b'"}


async def test_a_message_that_can_not_be_mapped_is_told_with_what_happens_to_it(api: Api) -> None:
    found = await preview(api, {"topic": "plant/1"}, kafka={"topic": "t", "key": "{topic[4]}"}, on_poison="drop")
    assert (found["record"], found["poison"]["reason"], found["on_poison"]) == (None, "not_mappable", "drop")
    assert "needs topic level 4" in found["poison"]["detail"]


async def test_a_record_over_the_configured_limit_is_poison_and_one_at_the_limit_is_not(api: Api) -> None:
    message = {"topic": "plant/1", "payload": "x" * 2000}
    size = (await preview(api, message))["record"]["size"]
    api.runtime.limit = size
    assert (await preview(api, message))["record"]["size"] == size
    api.runtime.limit = size - 1
    found = await preview(api, message, on_poison="drop")
    assert found == NOTHING | {
        "matched": True,
        "poison": {
            "reason": "message_too_large",
            "detail": f"the record has {size} bytes, message.max.bytes allows {size - 1}",
        },
        "on_poison": "drop",
    }


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ({}, "/message/topic"),
        ({"topic": ""}, "/message/topic"),
        ({"topic": "a/#"}, "/message/topic"),
        ({"topic": "a\0"}, "/message/topic"),
        ({"topic": "a", "qos": 3}, "/message/qos"),
        ({"topic": "a", "payload_base64": "%%"}, "/message/payload_base64"),
        ({"topic": "a", "payload": "x", "payload_base64": "eA=="}, "/message"),
        ({"topic": "a", "payloda": "x"}, "/message/payloda"),
    ],
)
async def test_an_invalid_message_is_pointed_at(api: Api, message: dict[str, Any], expected: str) -> None:
    response = await api.http.post("/api/v1/preview", json={"mapping": document(), "message": message})
    assert pointers(response) == [expected]
    if expected.endswith("payloda"):
        assert "'payload'" in response.json()["detail"]


async def test_an_invalid_mapping_is_pointed_at_with_a_suggestion(api: Api) -> None:
    mapping = document(kafka={"topic": "t", "kye": "x"})
    response = await api.http.post("/api/v1/preview", json={"mapping": mapping, "message": {"topic": "a"}})
    assert pointers(response) == ["/mapping/kafka/kye"]
    assert "'key'" in response.json()["detail"]
