"""A token endpoint (RFC 6749, client credentials) that a test can make refuse, hang or go away."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import ssl
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    import trustme

CLIENT_ID, CLIENT_SECRET = "forwarder", "client-secret-hunter2"


@dataclass
class TokenEndpoint:
    """Gives `tokens()` to who has the right credentials; `answer` takes the place of that: status and body, or None.

    None as the answer is silence. `asked` are the forms that came.
    """

    tokens: Callable[[], str]
    lifetime: float | None = 300
    answer: tuple[int, bytes] | str | None = "a token"
    asked: list[dict[str, list[str]]] = field(default_factory=list)
    url: str = ""

    @asynccontextmanager
    async def serving(self, authority: trustme.CA | None = None, port: int = 0) -> AsyncIterator[TokenEndpoint]:
        """Listen, over TLS with a certificate of this authority; everything is closed when the block ends."""
        context = None
        if authority is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            authority.issue_cert("127.0.0.1").configure_cert(context)
        tasks: set[asyncio.Task[None]] = set()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            tasks.add(task)
            try:
                await self._serve(reader, writer)
            except (OSError, asyncio.IncompleteReadError):
                pass  # the client has given up
            finally:
                tasks.discard(task)
                writer.close()
                with contextlib.suppress(OSError):
                    await writer.wait_closed()

        server = await asyncio.start_server(serve, "127.0.0.1", port, ssl=context)
        listening = server.sockets[0].getsockname()[1]
        self.url = f"{'https' if context else 'http'}://127.0.0.1:{listening}/oauth2/token?tenant=hunter2"
        try:
            yield self
        finally:
            server.close()
            for task in list(tasks):
                task.cancel()
            if tasks:
                await asyncio.wait(tasks)
            await server.wait_closed()

    def config(self, **more: Any) -> dict[str, Any]:
        """Make the part of `kafka.config` that leads here."""
        return {
            "sasl.mechanism": "OAUTHBEARER",
            "sasl.oauthbearer.method": "oidc",
            "sasl.oauthbearer.token.endpoint.url": self.url,
            "sasl.oauthbearer.client.id": CLIENT_ID,
            "sasl.oauthbearer.client.secret": CLIENT_SECRET,
            **more,
        }

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        request, *lines = head.split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        form = parse_qs((await reader.readexactly(int(headers["content-length"]))).decode())
        assert request == "POST /oauth2/token?tenant=hunter2 HTTP/1.1"
        self.asked.append(form)
        if self.answer is None:
            await asyncio.Event().wait()
        status, body = self.answer if isinstance(self.answer, tuple) else self._token(headers["authorization"], form)
        writer.write(
            f"HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
            "Connection: close\r\n\r\n".encode()
            + body
        )
        await writer.drain()

    def _token(self, authorization: str, form: dict[str, list[str]]) -> tuple[int, bytes]:
        if authorization != "Basic " + base64.b64encode(f"{CLIENT_ID}:{CLIENT_SECRET}".encode()).decode():
            return 401, b'{"error": "invalid_client"}'
        assert form["grant_type"] == ["client_credentials"]
        answer: dict[str, Any] = {"access_token": self.tokens(), "token_type": "Bearer"}
        if self.lifetime is not None:
            answer["expires_in"] = self.lifetime
        return 200, json.dumps(answer).encode()
