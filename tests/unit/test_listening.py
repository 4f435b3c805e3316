"""How the API listens: nobody holds a connection without asking for something, and only proxies speak for others."""

from __future__ import annotations

import asyncio
import socket
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import uvicorn

from server import listening

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


async def _who(scope: Any, receive: Any, send: Any) -> None:
    """Answer with the client's address, when it may."""
    if scope["type"] == "lifespan":
        for done in ("startup", "shutdown"):
            await receive()
            await send({"type": f"lifespan.{done}.complete"})
        return
    if scope["path"] == "/slow":
        await asyncio.sleep(0.6)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": scope["client"][0].encode()})


@asynccontextmanager
async def serving(*trusted: str, **options: Any) -> AsyncIterator[int]:
    """Serve on loopback; yields the port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(listening.server_config(_who, trusted_proxies=trusted, **options))
        task = asyncio.create_task(server._serve([listener]))
        while not server.started:
            await asyncio.sleep(0.01)
        try:
            yield listener.getsockname()[1]
        finally:
            server.should_exit = True
            await task


async def _ended(reader: asyncio.StreamReader) -> bytes:
    async with asyncio.timeout(20):
        return await reader.read()


@pytest.mark.parametrize("sent", [b"", b"GET / HTTP/1.1\r\nhost: a\r\n"])
async def test_a_head_that_does_not_come_ends_the_connection(monkeypatch: pytest.MonkeyPatch, sent: bytes) -> None:
    monkeypatch.setattr(listening, "HEAD_SECONDS", 0.2)
    async with serving() as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(sent)
        assert await _ended(reader) == b""
        writer.close()


async def test_also_the_head_of_a_later_request_has_to_come(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listening, "HEAD_SECONDS", 0.5)
    async with serving(timeout_keep_alive=60) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")
        assert await reader.readuntil(b"0\r\n\r\n")
        writer.write(b"GET / HTTP/1.1\r\n")
        assert await _ended(reader) == b""
        writer.close()


async def test_an_answer_may_take_longer_than_the_head_of_its_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listening, "HEAD_SECONDS", 0.3)
    async with serving() as port, httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as http:
        for _ in range(2):
            assert (await http.get("/slow")).text == "127.0.0.1"


async def test_a_head_that_goes_beyond_its_limit_is_refused() -> None:
    async with serving() as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET / HTTP/1.1\r\nhost: a\r\nx: " + b"y" * listening.HEAD_BYTES)
        assert (await _ended(reader)).startswith(b"HTTP/1.1 400 ")
        writer.close()


async def test_answers_do_not_say_what_serves_them() -> None:
    async with serving() as port, httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as http:
        assert "server" not in (await http.get("/")).headers


@pytest.mark.parametrize(
    ("trusted", "forwarded", "client"),
    [
        ((), "203.0.113.9", "127.0.0.1"),
        (("10.0.0.1",), "203.0.113.9", "127.0.0.1"),
        (("127.0.0.1",), "203.0.113.9", "203.0.113.9"),
        (("127.0.0.0/8",), "198.51.100.1, 203.0.113.9", "203.0.113.9"),
        (("127.0.0.0/8", "203.0.113.0/24"), "198.51.100.1, 203.0.113.9", "198.51.100.1"),
        (("127.0.0.1",), None, "127.0.0.1"),
    ],
)
async def test_only_trusted_proxies_say_for_whom_they_ask(
    monkeypatch: pytest.MonkeyPatch, trusted: tuple[str, ...], forwarded: str | None, client: str
) -> None:
    monkeypatch.setenv("FORWARDED_ALLOW_IPS", "*")
    headers = {} if forwarded is None else {"x-forwarded-for": forwarded}
    async with serving(*trusted) as port, httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as http:
        assert (await http.get("/", headers=headers)).text == client
