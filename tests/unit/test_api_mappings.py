"""Mappings over the API: created, read, listed, replaced, patched, deleted, validated."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.unit.api_under_test import MAPPINGS, Api, api_under_test, document, pointers, problem

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@pytest.fixture
async def api(database_url: str) -> AsyncIterator[Api]:
    async with api_under_test(database_url) as running:
        yield running


async def test_a_created_mapping_is_returned_with_its_place_and_etag(api: Api) -> None:
    response = await api.create(paused=True)
    assert response.headers["location"] == "/api/v1/mappings/plant"
    assert response.headers["etag"] == '"1"'
    assert response.json()["paused"] is True
    assert api.runtime.wakes == 1
    assert await api.actions() == ["create"]


async def test_creating_a_name_twice_is_a_conflict(api: Api) -> None:
    await api.create()
    response = await api.http.post(MAPPINGS, json=document(mqtt={"topic": "other"}))
    assert "'plant'" in problem(response, 409, "name-taken")["detail"]
    assert api.runtime.wakes == 1


async def test_a_client_id_of_another_mapping_is_refused_with_its_pointer(api: Api) -> None:
    await api.create()
    clash = {"topic": "a", "client_id": "base-plant"}
    response = await api.http.post(MAPPINGS, json=document("b", mqtt=clash))
    assert pointers(response) == ["/mqtt/client_id"]
    assert "'plant'" in response.json()["detail"]
    await api.create("c")
    assert pointers(await api.http.put(f"{MAPPINGS}/c", json=document("c", mqtt=clash))) == ["/mqtt/client_id"]
    assert pointers(await api.http.patch(f"{MAPPINGS}/c", json={"mqtt": clash})) == ["/mqtt/client_id"]
    assert pointers(await api.http.post(f"{MAPPINGS}/validate", json=document("d", mqtt=clash))) == ["/mqtt/client_id"]


@pytest.mark.parametrize(
    ("changes", "pointer"),
    [
        ({"paused": 0}, "/paused"),
        ({"wrap_as_json": "true"}, "/wrap_as_json"),
        ({"buffer_bytes": "4096"}, "/buffer_bytes"),
        ({"mqtt": {"topic": "a", "qos": False}}, "/mqtt/qos"),
        ({"on_poison": 1}, "/on_poison"),
    ],
)
async def test_a_value_of_another_type_than_is_documented_is_refused(
    api: Api, changes: dict[str, Any], pointer: str
) -> None:
    await api.create()
    assert pointers(await api.http.post(MAPPINGS, json=document("b", **changes))) == [pointer]
    assert pointers(await api.http.put(f"{MAPPINGS}/plant", json=document(**changes))) == [pointer]
    assert pointers(await api.http.patch(f"{MAPPINGS}/plant", json=changes)) == [pointer]


async def test_all_errors_come_at_once_with_pointers_and_suggestions(api: Api) -> None:
    body = {"nme": "x", "mqtt": {"topic": ["a/#/b", 5], "qs": 1}, "kafka": {"headers": {"a/~b": 1}}, "zzz": 1}
    response = await api.http.post(MAPPINGS, json=body)
    found = problem(response, 422, "invalid")
    told = {error["pointer"]: error for error in found["errors"]}
    assert told["/name"]["code"] == "missing"
    assert told["/mqtt/topic/1"]["code"] == "string_type"
    assert told["/mqtt/qs"]["detail"] == "unknown key; did you mean 'qos'?"
    assert told["/kafka/topic"]["code"] == "missing"
    assert told["/kafka/headers/a~1~0b"]["code"] == "string_type"
    assert told["/zzz"]["detail"].startswith("unknown key; known are name, paused, mqtt")
    assert "more" in found["detail"]


async def test_a_rule_across_fields_points_at_the_whole_body(api: Api) -> None:
    response = await api.http.post(MAPPINGS, json=document(on_poison="dead_letter"))
    assert pointers(response) == [""]
    assert response.json()["errors"][0]["detail"] == "on_poison: dead_letter needs a dead_letter_topic"


async def test_a_member_of_a_union_is_no_part_of_the_pointer(api: Api) -> None:
    response = await api.http.post(MAPPINGS, json=document(mqtt={"topic": {"a": 1}}))
    assert set(pointers(response)) == {"/mqtt/topic"}


@pytest.mark.parametrize("body", ["[]", '"plant"', "7", "null"])
async def test_a_body_that_is_no_object_is_invalid(api: Api, body: str) -> None:
    await api.create()
    for method, path in (("POST", MAPPINGS), ("PUT", f"{MAPPINGS}/plant"), ("PATCH", f"{MAPPINGS}/plant")):
        response = await api.http.request(method, path, content=body, headers={"content-type": "application/json"})
        assert problem(response, 422, "invalid")["errors"] == [
            {"pointer": "", "detail": "Input should be a JSON object", "code": "model_type"}
        ]


async def test_a_flood_of_errors_is_told_in_part(api: Api) -> None:
    response = await api.http.post(MAPPINGS, json=document() | {f"k{number}": 1 for number in range(1000)})
    found = problem(response, 422, "invalid")
    assert len(found["errors"]) == 100
    assert "and 995 more" in found["detail"]


async def test_what_is_read_can_be_put_back_unchanged(api: Api) -> None:
    await api.create(kafka={"topic": "t", "headers": {"h": "{mapping}"}})
    read = await api.http.get(f"{MAPPINGS}/plant")
    assert (read.status_code, read.headers["etag"]) == (200, '"1"')
    put = await api.http.put(f"{MAPPINGS}/plant", json=read.json(), headers={"if-match": read.headers["etag"]})
    assert (put.status_code, put.json(), put.headers["etag"]) == (200, read.json(), '"1"')
    assert await api.actions() == ["create"]


async def test_an_unknown_mapping_is_not_found_by_any_method(api: Api) -> None:
    missing = f"{MAPPINGS}/none"
    problem(await api.http.get(missing), 404, "mapping-not-found")
    problem(await api.http.get(f"{missing}/status"), 404, "mapping-not-found")
    problem(await api.http.put(missing, json=document("none")), 404, "mapping-not-found")
    problem(await api.http.patch(missing, json={}), 404, "mapping-not-found")
    problem(await api.http.delete(missing), 404, "mapping-not-found")
    assert api.runtime.wakes == 0


async def test_put_takes_the_name_from_the_url_and_leaves_the_pause_alone(api: Api) -> None:
    await api.create(paused=True)
    body = {"mqtt": {"topic": "b/#"}, "kafka": {"topic": "b"}}
    response = await api.http.put(f"{MAPPINGS}/plant", json=body)
    assert (response.status_code, response.headers["etag"]) == (200, '"2"')
    assert (response.json()["name"], response.json()["paused"]) == ("plant", True)
    response = await api.http.put(f"{MAPPINGS}/plant", json=body | {"paused": False})
    assert response.json()["paused"] is False
    assert await api.actions() == ["replace", "replace", "create"]
    assert api.runtime.wakes == 3


@pytest.mark.parametrize("name", ["other", 5, None])
async def test_a_name_can_not_be_changed(api: Api, name: object) -> None:
    await api.create()
    put = await api.http.put(f"{MAPPINGS}/plant", json=document() | {"name": name})
    patch = await api.http.patch(f"{MAPPINGS}/plant", json={"name": name})
    assert set(pointers(put)) == set(pointers(patch)) == {"/name"}


async def test_a_changed_name_is_told_with_the_other_errors(api: Api) -> None:
    await api.create()
    response = await api.http.put(f"{MAPPINGS}/plant", json={"name": "other", "mqtt": {"topic": "a"}})
    assert pointers(response) == ["/name", "/kafka"]


@pytest.mark.parametrize("content_type", ["application/merge-patch+json", "application/json; charset=utf-8"])
async def test_a_merge_patch_changes_what_it_names_and_null_restores_a_default(api: Api, content_type: str) -> None:
    await api.create(
        kafka={"topic": "t", "key": "k", "headers": {"a": "1", "b": "2"}},
        on_poison="dead_letter",
        dead_letter_topic="d",
    )
    response = await api.http.patch(
        f"{MAPPINGS}/plant",
        content=b'{"kafka": {"headers": {"a": null, "c": "3"}}, "on_poison": null, "dead_letter_topic": null}',
        headers={"content-type": content_type},
    )
    assert response.status_code == 200, response.text
    patched = response.json()
    assert patched["kafka"] == {"topic": "t", "key": "k", "headers": {"b": "2", "c": "3"}}
    assert (patched["on_poison"], patched["dead_letter_topic"]) == ("stop", None)
    assert (await api.actions())[0] == "patch"


async def test_a_patched_mapping_is_validated_as_a_whole(api: Api) -> None:
    await api.create()
    assert pointers(await api.http.patch(f"{MAPPINGS}/plant", json={"kafka": None})) == ["/kafka"]
    assert pointers(await api.http.patch(f"{MAPPINGS}/plant", json={"mqtt": "a/#"})) == ["/mqtt"]


async def test_a_deleted_mapping_is_gone_and_its_name_free(api: Api) -> None:
    await api.create()
    response = await api.http.delete(f"{MAPPINGS}/plant")
    assert (response.status_code, response.content) == (204, b"")
    assert api.runtime.wakes == 2
    problem(await api.http.get(f"{MAPPINGS}/plant"), 404, "mapping-not-found")
    await api.create()


async def test_status_tells_what_is_observed_with_rfc_3339_times(api: Api) -> None:
    await api.create()
    found = (await api.http.get(f"{MAPPINGS}/plant/status")).json()
    assert (found["state"], found["desired"], found["since"]) == ("running", "running", "2026-01-02T03:04:05Z")


async def test_validate_accepts_without_storing_and_warns(api: Api) -> None:
    await api.create()
    mqtt = {"topic": ["a/+/c", "a/b/+"], "qos": 0, "client_id": ""}
    response = await api.http.post(f"{MAPPINGS}/validate", json=document("new", mqtt=mqtt))
    assert response.status_code == 200
    assert response.json()["valid"] is True
    assert [warning.split()[0] for warning in response.json()["warnings"]] == ["without", "QoS", "topic"]
    assert [stored.spec.name for stored in await api.store.mappings()] == ["plant"]


async def test_validate_judges_an_existing_name_as_a_change_of_it(api: Api) -> None:
    await api.create()
    response = await api.http.post(f"{MAPPINGS}/validate", json=document())
    assert (response.status_code, response.json()) == (200, {"valid": True, "warnings": []})


async def test_validate_tells_what_is_wrong(api: Api) -> None:
    assert pointers(await api.http.post(f"{MAPPINGS}/validate", json=document("a\n"))) == ["/name"]
