"""What can go wrong with a request, and how it is told."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from fastapi import HTTPException
from structlog.testing import capture_logs

from server.api import bodies
from server.api.bodies import LIMIT_BYTES, merge_patched
from server.api.problems import KINDS
from server.store.errors import StoreError, StoreUnavailableError
from tests.unit.api_under_test import MAPPINGS, Api, api_under_test, document, problem

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

JSON = {"content-type": "application/json"}
BODIES = [("POST", MAPPINGS), ("POST", f"{MAPPINGS}/validate"), ("PUT", f"{MAPPINGS}/plant")]
BODIES += [("PATCH", f"{MAPPINGS}/plant"), ("POST", "/api/v1/preview")]


@pytest.fixture
async def api(database_url: str) -> AsyncIterator[Api]:
    async with api_under_test(database_url) as running:
        yield running


@pytest.mark.parametrize(("method", "path"), BODIES)
async def test_a_body_that_is_not_json_is_malformed(api: Api, method: str, path: str) -> None:
    for body in (b"", b"{", b"{'a': 1}", b'{"a": NaN}', b'{"a": "\xff"}', b'"\\ud800"', b"[" * 9999):
        problem(await api.http.request(method, path, content=body, headers=JSON), 400, "malformed-json")


@pytest.mark.parametrize(("method", "path"), BODIES)
async def test_other_content_types_are_refused_with_those_that_fit(api: Api, method: str, path: str) -> None:
    expected = "application/merge-patch+json, application/json" if method == "PATCH" else "application/json"
    for content_type in (None, "text/plain", "application/x-www-form-urlencoded", "application/jsonx"):
        headers = {"content-type": content_type} if content_type else {}
        response = await api.http.request(method, path, content=b"{}", headers=headers)
        problem(response, 415, "unsupported-media-type")
        assert response.headers["accept-patch" if method == "PATCH" else "accept"] == expected


@pytest.mark.parametrize(("method", "path"), BODIES)
async def test_a_body_over_a_mebibyte_is_too_large_announced_or_not(api: Api, method: str, path: str) -> None:
    body = b" " * (LIMIT_BYTES + 1)
    problem(await api.http.request(method, path, content=body, headers=JSON), 413, "body-too-large")

    async def unannounced() -> AsyncIterator[bytes]:
        for start in range(0, len(body), 65_536):
            yield body[start : start + 65_536]

    problem(await api.http.request(method, path, content=unannounced(), headers=JSON), 413, "body-too-large")
    problem(await api.http.request(method, path, content=body[1:], headers=JSON), 400, "malformed-json")


async def test_a_client_that_leaves_while_sending_is_no_internal_error(api: Api) -> None:
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [(b"content-type", b"application/json"), (b"content-length", b"10")]
    scope = {"type": "http", "method": "POST", "path": MAPPINGS, "headers": headers, "query_string": b""}
    with capture_logs() as logs:
        await api.app(scope, receive, send)
    assert (sent[0]["status"], [log["event"] for log in logs]) == (400, ["api_request"])


async def test_a_body_that_does_not_come_to_an_end_is_given_up(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "LIMIT_SECONDS", 0.05)

    async def endless() -> AsyncIterator[bytes]:
        yield b"{"
        await asyncio.Event().wait()

    response = await api.http.post(MAPPINGS, content=endless(), headers=JSON)
    problem(response, 408, "body-too-slow")
    assert response.headers["connection"] == "close"


async def test_an_unknown_path_is_not_found(api: Api) -> None:
    problem(await api.http.get("/nowhere"), 404, "not-found")
    problem(await api.http.get(f"{MAPPINGS}/plant/nowhere"), 404, "not-found")


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("DELETE", MAPPINGS, "GET, POST"),
        ("POST", f"{MAPPINGS}/plant", "DELETE, GET, PATCH, PUT"),
        ("GET", f"{MAPPINGS}/plant/pause", "POST"),
        ("PUT", f"{MAPPINGS}/plant/status", "GET"),
        ("POST", "/livez", "GET"),
    ],
)
async def test_a_wrong_method_is_told_all_that_are_allowed(api: Api, method: str, path: str, allowed: str) -> None:
    response = await api.http.request(method, path)
    problem(response, 405, "method-not-allowed")
    assert response.headers["allow"] == allowed


async def test_a_closed_store_is_503_everywhere_and_says_when_to_come_back(api: Api) -> None:
    await api.create()
    await api.store.close()
    plant = f"{MAPPINGS}/plant"
    requests: list[tuple[str, str, Any]] = [
        ("GET", MAPPINGS, None),
        ("POST", MAPPINGS, document("b")),
        ("POST", f"{MAPPINGS}/validate", document("b")),
        ("GET", plant, None),
        ("GET", f"{plant}/status", None),
        ("PUT", plant, document()),
        ("PATCH", plant, {}),
        ("DELETE", plant, None),
        ("POST", f"{plant}/pause", None),
        ("GET", "/api/v1/events", None),
        ("GET", "/api/v1/config/export", None),
    ]
    for method, path, body in requests:
        response = await api.http.request(method, path, json=body)
        found = problem(response, 503, "store-unavailable")
        assert found["detail"] == "the store is not open; nothing was written"
        assert int(response.headers["retry-after"]) > 0
    assert api.runtime.wakes == 1


@pytest.mark.parametrize(
    ("error", "status", "slug"),
    [
        (StoreUnavailableError("the file was removed"), 503, "store-unavailable"),
        (StoreError("secret-host is broken"), 500, "internal"),
        (RuntimeError("secret-host"), 500, "internal"),
    ],
)
async def test_a_fault_is_logged_with_its_cause_and_only_the_stores_own_reason_is_told(
    api: Api, monkeypatch: pytest.MonkeyPatch, error: Exception, status: int, slug: str
) -> None:
    async def fail() -> None:
        raise error

    monkeypatch.setattr(api.store, "mappings", fail)
    with capture_logs() as logs:
        response = await api.http.get(MAPPINGS)
    found = problem(response, status, slug)
    if status == 503:  # /readyz says it too, and the message is written for whoever has to mend it
        assert str(error) in found["detail"]
    else:
        assert "secret-host" not in response.text
    (entry,) = logs
    assert (entry["method"], entry["path"]) == ("GET", MAPPINGS)
    if status == 500:
        assert entry["exc_info"] is error
    else:
        assert (entry["log_level"], entry["reason"]) == ("warning", str(error))


async def test_a_status_without_a_kind_of_its_own_is_still_a_problem(api: Api) -> None:
    async def teapot() -> None:
        raise HTTPException(418, "short and stout", headers={"x-lid": "on"})

    api.app.add_api_route("/teapot", teapot)
    response = await api.http.get("/teapot")
    assert response.headers["content-type"] == "application/problem+json"
    assert response.headers["x-lid"] == "on"
    assert response.json() == {
        "type": "about:blank",
        "title": "I'm a Teapot",
        "status": 418,
        "detail": "short and stout",
    }


async def test_every_kind_of_problem_is_explained_at_its_type(api: Api) -> None:
    for slug, kind in KINDS.items():
        response = await api.http.get(f"/problems/{slug}")
        assert response.text == f"{kind.status} {kind.title}\n\n{kind.explanation}\n"


async def test_an_unknown_kind_of_problem_is_not_found(api: Api) -> None:
    problem(await api.http.get("/problems/none"), 404, "not-found")


@pytest.mark.parametrize(
    ("target", "patch", "expected"),
    [
        ({"a": "b"}, {"a": "c"}, {"a": "c"}),
        ({"a": "b"}, {"b": "c"}, {"a": "b", "b": "c"}),
        ({"a": "b"}, {"a": None}, {}),
        ({"a": "b", "b": "c"}, {"a": None}, {"b": "c"}),
        ({"a": ["b"]}, {"a": "c"}, {"a": "c"}),
        ({"a": "c"}, {"a": ["b"]}, {"a": ["b"]}),
        ({"a": {"b": "c"}}, {"a": {"b": "d", "c": None}}, {"a": {"b": "d"}}),
        ({"a": [{"b": "c"}]}, {"a": [1]}, {"a": [1]}),
        (["a", "b"], ["c", "d"], ["c", "d"]),
        ({"a": "b"}, ["c"], ["c"]),
        ({"a": "foo"}, None, None),
        ({"a": "foo"}, "bar", "bar"),
        ({"e": None}, {"a": 1}, {"e": None, "a": 1}),
        ([1, 2], {"a": "b", "c": None}, {"a": "b"}),
        ({}, {"a": {"bb": {"ccc": None}}}, {"a": {"bb": {}}}),
    ],
)
def test_merge_patches_do_what_the_appendix_of_rfc_7396_says(target: Any, patch: Any, expected: Any) -> None:
    assert merge_patched(target, patch) == expected
