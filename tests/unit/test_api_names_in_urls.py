"""Names in URLs: whatever a mapping may be named, it is reached, also through a real server."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pytest
import uvicorn

from tests.unit.api_under_test import MAPPINGS, Api, api_under_test, document, problem

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

NAMES = [
    "a/b",
    "/",
    "a//b/",
    "with space",
    "Halle 7, Größe ☃ 🏭",
    "why?",
    "50%",
    "a%2Fb",
    "#1&x=y;z+w",
    "..a/../b",
    "validate",
    "status",
    "pause",
    "a/pause",
    "\\\"'<>",
    "e\u0301",
]


def path_of(name: str) -> str:
    return f"{MAPPINGS}/{quote(name, safe='').replace('.', '%2E')}"


@pytest.fixture
async def api(database_url: str) -> AsyncIterator[Api]:
    async with api_under_test(database_url) as running:
        yield running


@asynccontextmanager
async def served(api: Api) -> AsyncIterator[int]:
    """The port of a real server; httpx's transport for tests makes up its own raw_path."""
    server = uvicorn.Server(uvicorn.Config(api.app, port=0, log_config=None, ws="none", lifespan="off"))
    serving = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    try:
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        await serving


async def request(port: int, method: str, path: str, body: Any = None) -> tuple[int, dict[str, str], Any]:
    """One request with exactly this path: client libraries resolve dots and encode anew."""
    content = b"" if body is None else json.dumps(body).encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = f"{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    writer.write(f"{head}Content-Length: {len(content)}\r\nConnection: close\r\n\r\n".encode() + content)
    answer, _, received = (await reader.read()).partition(b"\r\n\r\n")
    writer.close()
    await writer.wait_closed()
    first, *lines = answer.decode().split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    return int(first.split()[1]), headers, json.loads(received) if received else None


@pytest.mark.parametrize("name", NAMES)
async def test_every_name_is_reached_where_its_location_says(api: Api, name: str) -> None:
    created = await api.create(name)
    assert created.headers["location"] == f"{MAPPINGS}/{quote(name, safe='')}"
    path = created.headers["location"]
    assert (await api.http.get(path)).json()["name"] == name
    assert (await api.http.post(f"{path}/pause")).json()["name"] == name
    assert (await api.http.get(f"{path}/status")).json()["name"] == name
    assert (await api.http.patch(path, json={"wrap_as_json": True})).json()["name"] == name
    assert (await api.http.delete(path)).status_code == 204


async def test_every_name_is_reached_through_a_real_server(api: Api) -> None:
    async with served(api) as port:
        for name in NAMES:
            status, headers, created = await request(port, "POST", MAPPINGS, document(name, mqtt={"topic": "a"}))
            assert (status, created["name"]) == (201, name)
            path = path_of(name)
            assert (await request(port, "GET", headers["location"]))[2]["name"] == name
            assert (await request(port, "GET", path))[2] == created
            assert (await request(port, "PUT", path, created | {"wrap_as_json": True}))[2]["name"] == name
            for action in ("pause", "resume", "restart"):
                assert (await request(port, "POST", f"{path}/{action}"))[2]["name"] == name
            assert (await request(port, "GET", f"{path}/status"))[2]["name"] == name
        assert {stored.spec.name for stored in await api.store.mappings()} == set(NAMES)
        for name in NAMES:
            assert (await request(port, "DELETE", path_of(name)))[0] == 204


async def test_unencoded_slashes_are_not_part_of_a_name(api: Api) -> None:
    await api.create("a/b")
    problem(await api.http.get(f"{MAPPINGS}/a/b"), 404, "not-found")


async def test_bytes_that_are_no_utf8_name_nothing(api: Api) -> None:
    async with served(api) as port:
        status, headers, found = await request(port, "GET", f"{MAPPINGS}/%FF")
    assert (status, headers["content-type"]) == (404, "application/problem+json")
    assert found["type"] == "/problems/mapping-not-found"


async def test_a_server_without_raw_paths_still_serves_plain_names(api: Api) -> None:
    await api.create("50% ☃")
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "GET", "path": f"{MAPPINGS}/50% ☃", "headers": [], "query_string": b""}
    await api.app(scope, receive, send)
    assert sent[0]["status"] == 200


async def test_a_location_keeps_the_prefix_of_a_proxy(api: Api) -> None:
    api.app.root_path = "/forwarder"
    created = await api.create("a/b")
    assert created.headers["location"] == "/forwarder/api/v1/mappings/a%2Fb"
    assert (await api.http.get(created.headers["location"])).json()["name"] == "a/b"
