"""SSL contexts of files: read once however many ask, and again when a file has changed."""

from __future__ import annotations

import asyncio
import os
import ssl
from typing import TYPE_CHECKING

import pytest
from cryptography.hazmat.primitives import serialization
from pydantic import SecretStr

from server.core.connections import MqttTls
from server.mqtt import tls as tls_module
from server.mqtt.port import ConnectionEndedError
from server.mqtt.tls import Contexts, ssl_context
from tests.brokers.secure import Authority

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


async def test_many_that_ask_together_share_one_reading(authority: Authority, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[MqttTls] = []

    def counting(tls: MqttTls) -> ssl.SSLContext:
        reads.append(tls)
        return ssl_context(tls)

    monkeypatch.setattr(tls_module, "ssl_context", counting)
    contexts, wanted = Contexts(), MqttTls(ca_cert=str(authority.ca_cert))
    made = await asyncio.gather(*(contexts.get(wanted) for _ in range(100)))
    assert len(set(map(id, made))) == 1
    assert len(reads) == 1


@pytest.mark.parametrize("key", ["ca_cert", "client_cert", "client_key"])
async def test_a_changed_file_makes_a_new_context(authority: Authority, key: str) -> None:
    mine = authority.issue("mine", "forwarder")
    wanted = MqttTls(ca_cert=str(authority.ca_cert), client_cert=str(mine.cert), client_key=str(mine.key))
    contexts = Contexts()
    before = await contexts.get(wanted)
    assert await contexts.get(wanted) is before
    os.utime(getattr(wanted, key), ns=(1, 1))
    after = await contexts.get(wanted)
    assert after is not before
    assert await contexts.get(wanted) is after


async def test_what_the_system_trusts_may_change_too(authority: Authority, monkeypatch: pytest.MonkeyPatch) -> None:
    contexts = Contexts()
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.ca_cert))
    before = await contexts.get(MqttTls())
    assert len(before.get_ca_certs()) == 1
    os.utime(authority.ca_cert, ns=(1, 1))
    assert await contexts.get(MqttTls()) is not before


async def test_files_that_are_gone_are_missed(authority: Authority) -> None:
    contexts, wanted = Contexts(), MqttTls(ca_cert=str(authority.ca_cert))
    await contexts.get(wanted)
    authority.ca_cert.unlink()
    with pytest.raises(ConnectionEndedError, match="No such file"):
        await contexts.get(wanted)


def test_old_versions_of_tls_are_not_spoken() -> None:
    assert ssl_context(MqttTls()).minimum_version >= ssl.TLSVersion.TLSv1_2


def test_a_key_may_have_a_password(authority: Authority, tmp_path: Path) -> None:
    mine = authority.issue("mine", "forwarder")
    key = serialization.load_pem_private_key(mine.key.read_bytes(), None)
    locked = tmp_path / "locked.key"
    locked.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"open sesame"),
        )
    )

    def of(password: str | None) -> MqttTls:
        secret = None if password is None else SecretStr(password)
        return MqttTls(client_cert=str(mine.cert), client_key=str(locked), client_key_password=secret)

    ssl_context(of("open sesame"))
    for wrong in (None, "wrong sesame", "x" * 2_000):
        with pytest.raises(ConnectionEndedError, match=r"client_key_password") as raised:
            ssl_context(of(wrong))
        assert "sesame" not in str(raised.value)
