"""How the API listens: nobody holds a connection without asking for something, and only proxies speak for others."""

from __future__ import annotations

import asyncio
import socket
import ssl
import subprocess
import sys
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any
from unittest.mock import Mock

import httpx
import pytest
import trustme
import uvicorn
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)
from structlog.testing import capture_logs

from server import listening

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


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


def _write(folder: Path, made: trustme.LeafCert) -> tuple[Path, Path]:
    files = folder / "tls.crt", folder / "tls.key"
    files[0].write_bytes(b"".join(each.bytes() for each in made.cert_chain_pems))
    files[1].write_bytes(made.private_key_pem.bytes())
    return files


def _trusting(ca: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    ca.configure_trust(context)
    return context


async def _reaches(port: int, ca: trustme.CA) -> bool:
    async with httpx.AsyncClient(verify=_trusting(ca)) as http:
        try:
            return (await http.get(f"https://127.0.0.1:{port}/")).text == "127.0.0.1"
        except httpx.ConnectError:
            return False


async def test_a_new_certificate_serves_new_connections_and_the_old_ones_go_on(tmp_path: Path) -> None:
    old, new = trustme.CA(), trustme.CA()
    certificate = listening.Certificate(*_write(tmp_path, old.issue_cert("127.0.0.1")))
    async with (
        serving(certificate=certificate, timeout_keep_alive=60) as port,
        httpx.AsyncClient(base_url=f"https://127.0.0.1:{port}", verify=_trusting(old)) as http,
    ):
        assert (await http.get("/")).status_code == 200
        assert not await _reaches(port, new)
        _write(tmp_path, new.issue_cert("127.0.0.1"))
        certificate.reload()
        assert await _reaches(port, new)
        assert not await _reaches(port, old)
        assert (await http.get("/")).status_code == 200


# Handshakes begin in one thread, as in the loop's, and another loads the files again and again.
_RENEWED_AND_USED = """
import sys, threading
from pathlib import Path
from ssl import MemoryBIO
from server.listening import Certificate

certificate = Certificate(Path(sys.argv[1]), Path(sys.argv[2]))
ended = threading.Event()

def renew():
    for _ in range(2000):
        certificate.load()
    ended.set()

sys.setswitchinterval(1e-6)
threading.Thread(target=renew).start()
while not ended.is_set():
    certificate.context.wrap_bio(MemoryBIO(), MemoryBIO(), server_side=True)
"""


def test_a_certificate_is_renewed_while_connections_begin(tmp_path: Path) -> None:
    # In a process of its own: it ended by SIGSEGV when files were loaded into the context that is in use.
    files = _write(tmp_path, trustme.CA().issue_cert("127.0.0.1"))
    subprocess.run([sys.executable, "-c", _RENEWED_AND_USED, *files], check=True, timeout=60)


async def test_while_certificate_and_key_do_not_fit_the_ones_before_serve(tmp_path: Path) -> None:
    ca = trustme.CA()
    certificate = listening.Certificate(*_write(tmp_path, ca.issue_cert("127.0.0.1")))
    async with serving(certificate=certificate) as port:
        with capture_logs() as logs:
            (tmp_path / "tls.key").write_bytes(ca.issue_cert("127.0.0.1").private_key_pem.bytes())
            certificate.reload()
            certificate.reload()
            assert await _reaches(port, ca)
            (tmp_path / "tls.key").unlink()
            certificate.reload()
            assert await _reaches(port, ca)
    assert [entry["event"] for entry in logs] == ["certificate_unusable"] * 2
    assert "the key is not the certificate's; the one before stays in use" in logs[0]["reason"]


def test_a_certificate_that_is_replaced_while_it_is_read_is_trouble_until_the_next_look(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate = listening.Certificate(*_write(tmp_path, trustme.CA().issue_cert("127.0.0.1")))
    with monkeypatch.context() as replaced, capture_logs() as logs:
        gone = FileNotFoundError(2, "No such file or directory")
        replaced.setattr(ssl.SSLContext, "load_cert_chain", Mock(side_effect=gone))
        certificate.reload()
    assert "tls.key can't be read: No such file or directory; the one before stays in use" in logs[0]["reason"]
    with capture_logs() as logs:
        certificate.reload()
    assert [entry["event"] for entry in logs] == ["certificate_loaded"]


async def test_what_does_not_speak_tls_and_what_is_outdated_is_not_served(tmp_path: Path) -> None:
    ca = trustme.CA()
    certificate = listening.Certificate(*_write(tmp_path, ca.issue_cert("127.0.0.1")))
    assert certificate.context.current.minimum_version is ssl.TLSVersion.TLSv1_2
    async with serving(certificate=certificate) as port, httpx.AsyncClient() as http:
        with pytest.raises(httpx.TransportError):
            await http.get(f"http://127.0.0.1:{port}/")


@pytest.mark.parametrize("trouble", ["no certificate", "no key", "mismatch", "text", "encrypted"])
def test_a_certificate_that_can_not_be_used_is_refused_with_its_file(tmp_path: Path, trouble: str) -> None:
    made = trustme.CA().issue_cert("localhost")
    certificate, key = _write(tmp_path, made)
    said = {
        "no certificate": "MKF_TLS_CERT: .*tls.crt can't be read: No such file",
        "no key": "MKF_TLS_KEY: .*tls.key can't be read: No such file",
        "mismatch": "tls.crt and MKF_TLS_KEY .*tls.key can't be used: the key is not the certificate's",
        "text": "can't be used: expected are PEM files with a certificate",
        "encrypted": "MKF_TLS_KEY: .*tls.key is encrypted; give one that is not",
    }
    match trouble:
        case "no certificate":
            certificate.unlink()
        case "no key":
            key.unlink()
        case "mismatch":
            key.write_bytes(trustme.CA().issue_cert("localhost").private_key_pem.bytes())
        case "text":
            certificate.write_text("not a certificate")
        case "encrypted":
            loaded = load_pem_private_key(made.private_key_pem.bytes(), None)
            encryption = BestAvailableEncryption(b"password")
            key.write_bytes(loaded.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption))
    with pytest.raises(listening.CertificateError, match=said[trouble]):
        listening.Certificate(certificate, key)
