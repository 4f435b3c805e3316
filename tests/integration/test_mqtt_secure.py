"""MQTT over TLS and WebSocket on a real Mosquitto, for both protocol versions: what goes wrong, and how it mends."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import ssl
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from server.core.connections import MqttTls
from server.mqtt import dial
from server.mqtt import tls as tls_module
from server.mqtt.port import ConnectionEndedError, SubscriptionRefusedError
from server.mqtt.tls import ssl_context
from tests.brokers import MqttBroker
from tests.brokers.secure import KINDS, WITH_CERTIFICATE, Authority, PemFiles, SecureMosquitto
from tests.devices import publish
from tests.eachloop import on_each_loop
from tests.integration.test_mqtt_5 import Collector, Version, ended, numbered, request, subscriptions

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from server.core.lifecycle import Reason
    from server.mqtt.port import Ended, SessionRequest


@pytest.fixture(params=["5", "3.1.1"])
def version(request: pytest.FixtureRequest) -> Version:
    return Version(request.param)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("pki"))


@pytest.fixture(scope="module")
def client(authority: Authority) -> PemFiles:
    return authority.issue("client", "forwarder")


@pytest.fixture(scope="module")
def broker(authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecureMosquitto]:
    """A broker for every test that does not break it."""
    server = authority.issue("server", "localhost", "127.0.0.1")
    folder = tmp_path_factory.mktemp("secure")
    with SecureMosquitto(folder, authority=authority, server=server, persistence=False) as running:
        yield running


@pytest.fixture
def own_broker(authority: Authority, tmp_path: Path) -> Iterator[Callable[..., SecureMosquitto]]:
    """Start a broker of the test's own, with this certificate; options as in `SecureMosquitto`."""
    with ExitStack() as stack:

        def make(server: PemFiles | None = None, **options: Any) -> SecureMosquitto:
            good = server or authority.issue("server", "127.0.0.1")
            made = SecureMosquitto(tmp_path / "broker", authority=authority, server=good, **options)
            return stack.enter_context(made)

        yield make


async def refused(version: Version, to: SessionRequest) -> Reason:
    """Why this can't connect, or does not stay connected."""
    try:
        connection = await version.connector.connect(to, Collector())
    except ConnectionEndedError as error:
        return error.ended.reason
    ending: Ended = await ended(connection)
    return ending.reason


async def certificate_refused(version: Version, to: SessionRequest) -> Reason:
    """Why the broker refuses our certificate, or the lack of one, once its alert has arrived.

    It comes after our side of the handshake is complete (TLS 1.3), and closes with our CONNECT unread: now and then
    TCP's reset overtakes the alert. All that is known then is that nothing was answered, and what the cause may be.
    """
    for _ in range(20):
        reason = await refused(version, to)
        if reason.code != "mqtt_unanswered":
            break
        assert "it may want a client certificate (mqtt.tls.client_cert)" in reason.detail
    assert reason.code == "mqtt_client_certificate", reason
    return reason


async def accepted(version: Version, to: SessionRequest) -> None:
    """See that this connects."""
    async with version.connected(to) as (connection, _):
        await connection.subscribe(subscriptions("a"))
        await connection.leave()


@on_each_loop
@pytest.mark.parametrize("kind", KINDS)
async def test_messages_come_in_order_and_acknowledgements_arrive(
    version: Version, broker: SecureMosquitto, client: PemFiles, kind: str, unique: str
) -> None:
    to = request(broker, unique, **broker.mqtt(kind, client if kind in WITH_CERTIFICATE else None))
    async with version.connected(to, Collector(acknowledge=1_500)) as (connection, collector):
        await connection.subscribe(subscriptions(f"{unique}/#"))
        connection.pause_reading()  # or how many come together would be for the machine to decide
        await publish(broker.host, broker.port, numbered(f"{unique}/a", range(2_000)))
        connection.resume_reading()
        await collector.wait(2_000)
        await connection.leave()
    assert collector.payloads == [b"%d" % n for n in range(2_000)]
    assert len(collector.reads) < 1_000, "messages of a read come together"
    async with version.connected(to, Collector(acknowledge=500)) as (connection, collector):
        await collector.wait(500)
        await connection.leave()
    assert collector.payloads == [b"%d" % n for n in range(1_500, 2_000)]


# --- the broker's certificate ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["tls", "wss"])
@pytest.mark.parametrize(
    ("hosts", "expired", "code"),
    [
        (["127.0.0.1"], True, "mqtt_certificate_expired"),
        (["example.org"], False, "mqtt_certificate_host_name"),
    ],
)
async def test_a_wrong_certificate_is_refused_until_it_is_renewed(  # noqa: PLR0917 - fixtures
    version: Version,
    own_broker: Callable[..., SecureMosquitto],
    authority: Authority,
    kind: str,
    hosts: list[str],
    expired: bool,
    code: str,
) -> None:
    broker = own_broker(authority.issue("wrong", *hosts, expired=expired))
    to = request(broker, **broker.mqtt(kind))
    reason = await refused(version, to)
    assert reason.code == code
    assert to.broker.address in reason.detail
    broker.server = authority.issue("renewed", "127.0.0.1")
    broker.restart()
    await accepted(version, to)


@pytest.mark.parametrize("kind", ["tls", "wss"])
async def test_an_authority_is_trusted_as_soon_as_it_is_in_the_file(
    version: Version, own_broker: Callable[..., SecureMosquitto], tmp_path: Path, kind: str
) -> None:
    other = Authority(tmp_path, "other")
    broker = own_broker(other.issue("theirs", "127.0.0.1"))
    trusted = tmp_path / "trusted.pem"
    trusted.write_bytes(broker.authority.ca_cert.read_bytes())
    to = request(broker, **broker.mqtt(kind, ca_cert=str(trusted)))
    assert (await refused(version, to)).code == "mqtt_certificate_untrusted"
    trusted.write_bytes(trusted.read_bytes() + other.ca_cert.read_bytes())
    await accepted(version, to)


async def test_without_a_file_the_systems_authorities_are_trusted(
    version: Version, broker: SecureMosquitto, monkeypatch: pytest.MonkeyPatch
) -> None:
    to = request(broker, **{**broker.mqtt("tls"), "tls": True})
    assert (await refused(version, to)).code == "mqtt_certificate_untrusted"
    monkeypatch.setenv("SSL_CERT_FILE", str(broker.authority.ca_cert))
    await accepted(version, to)


async def test_the_name_to_expect_may_be_another_than_the_host(
    version: Version, own_broker: Callable[..., SecureMosquitto], authority: Authority
) -> None:
    broker = own_broker(authority.issue("wrong", "example.org"))
    await accepted(version, request(broker, **broker.mqtt("tls", server_name="example.org")))


async def test_a_certificate_that_is_not_to_be_checked_is_not(
    version: Version, own_broker: Callable[..., SecureMosquitto], authority: Authority
) -> None:
    broker = own_broker(authority.issue("wrong", "example.org", expired=True))
    await accepted(version, request(broker, **broker.mqtt("tls", insecure_skip_verify=True)))


# --- ours ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", WITH_CERTIFICATE)
async def test_a_broker_that_wants_a_certificate_and_gets_none_says_so(
    version: Version, broker: SecureMosquitto, client: PemFiles, kind: str
) -> None:
    reason = await certificate_refused(version, request(broker, **broker.mqtt(kind)))
    assert "set mqtt.tls.client_cert" in reason.detail
    await accepted(version, request(broker, **broker.mqtt(kind, client)))


@pytest.mark.parametrize("kind", WITH_CERTIFICATE)
@pytest.mark.parametrize("fault", ["expired", "signed by a stranger"])
async def test_a_certificate_of_ours_that_is_refused_is_taken_from_its_files_once_renewed(  # noqa: PLR0917 - fixtures
    version: Version, broker: SecureMosquitto, authority: Authority, tmp_path: Path, kind: str, fault: str, unique: str
) -> None:
    signing = authority if fault == "expired" else Authority(tmp_path, "other")
    wrong = signing.issue(f"mine-{unique}", "forwarder", expired=fault == "expired")
    to = request(broker, **broker.mqtt(kind, wrong))
    await certificate_refused(version, to)
    right = authority.issue(f"renewed-{unique}", "forwarder")
    right.key.replace(wrong.key)
    reason = await refused(version, to)  # the key of one and the certificate of the other
    assert reason.code == "mqtt_tls_files"
    assert str(wrong.key) in reason.detail
    right.cert.replace(wrong.cert)
    await accepted(version, to)


# --- files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("missing", ["ca_cert", "client_cert", "client_key"])
async def test_a_file_that_is_mounted_late_is_waited_for(
    version: Version, broker: SecureMosquitto, client: PemFiles, tmp_path: Path, missing: str
) -> None:
    settings = broker.mqtt("mtls", client)
    there, late = settings["tls"][missing], tmp_path / "late.pem"
    settings["tls"][missing] = str(late)
    to = request(broker, **settings)
    reason = await refused(version, to)
    assert reason.code == "mqtt_tls_files"
    assert f"mqtt.tls.{missing} ({late}) can't be used: No such file or directory" in reason.detail
    late.symlink_to(there)
    await accepted(version, to)


async def test_a_file_with_something_else_in_it_is_named(version: Version, broker: SecureMosquitto) -> None:
    reason = await refused(version, request(broker, **broker.mqtt("tls", ca_cert=__file__)))
    assert reason.code == "mqtt_tls_files"
    assert f"mqtt.tls.ca_cert ({__file__}) can't be used: it holds no certificate" in reason.detail


# --- the handshake ----------------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def shaking_hands(context: ssl.SSLContext) -> AsyncIterator[tuple[MqttBroker, list[Any]]]:
    """A server that speaks TLS as the test wants it, with one client, and closes; the list has version and ALPN agreed.

    It blocks in a thread of its own: asyncio's servers fail a handshake without a word.
    """
    agreed: list[Any] = []

    def serve(listening: socket.socket) -> None:
        end, _ = listening.accept()
        end.settimeout(10)
        with end, contextlib.suppress(OSError), context.wrap_socket(end, server_side=True) as shaken:
            agreed.append((shaken.version(), shaken.selected_alpn_protocol()))
            shaken.recv(1_000)
            shaken.unwrap()

    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(10)
        serving = asyncio.ensure_future(asyncio.to_thread(serve, listening))
        yield MqttBroker(*listening.getsockname()), agreed
        await serving


def server_context(files: PemFiles) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files.cert, files.key)
    return context


@on_each_loop
async def test_the_name_and_the_protocols_that_are_asked_for_are_what_the_settings_say(
    version: Version, authority: Authority
) -> None:
    context = server_context(authority.issue("aws", "iot.example.org"))
    context.set_alpn_protocols(["http/1.1", "x-amzn-mqtt-ca"])
    names: list[str | None] = []
    context.sni_callback = lambda _, name, __: names.append(name)
    tls = {"ca_cert": str(authority.ca_cert), "server_name": "iot.example.org", "alpn": ["x-amzn-mqtt-ca"]}
    async with shaking_hands(context) as (broker, agreed):
        assert (await refused(version, request(broker, tls=tls))).code == "mqtt_unanswered"
        assert names == ["iot.example.org"]
        assert agreed == [("TLSv1.3", "x-amzn-mqtt-ca")]


@on_each_loop
async def test_without_a_name_the_host_is_asked_for_and_no_protocol(version: Version, authority: Authority) -> None:
    context = server_context(authority.issue("local", "localhost"))
    context.set_alpn_protocols(["http/1.1"])
    names: list[str | None] = []
    context.sni_callback = lambda _, name, __: names.append(name)
    async with shaking_hands(context) as (broker, agreed):
        to = request(broker, host="localhost", tls={"ca_cert": str(authority.ca_cert)})
        assert (await refused(version, to)).code == "mqtt_unanswered"
        assert names == ["localhost"]
        assert agreed == [("TLSv1.3", None)]


@on_each_loop
async def test_a_broker_with_tls_1_2_that_wants_a_certificate_is_hinted_at(
    version: Version, authority: Authority
) -> None:
    context = server_context(authority.issue("old", "127.0.0.1"))
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(authority.ca_cert)
    async with shaking_hands(context) as (broker, _):
        reason = await refused(version, request(broker, tls={"ca_cert": str(authority.ca_cert)}))
    assert reason.code == "mqtt_tls"
    assert "it wants a client certificate" in reason.detail


@on_each_loop
async def test_nothing_in_common_is_told(version: Version, authority: Authority) -> None:
    context = server_context(authority.issue("old", "127.0.0.1"))
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    own = ssl_context(MqttTls(ca_cert=str(authority.ca_cert)))
    own.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tls_module, "ssl_context", lambda _: own)
        async with shaking_hands(context) as (broker, _):
            reason = await refused(version, request(broker, tls=True))
    assert reason.code == "mqtt_tls"
    assert "PROTOCOL_VERSION" in reason.detail


@on_each_loop
async def test_a_server_that_says_nothing_in_the_handshake_is_given_up(version: Version) -> None:
    with pytest.MonkeyPatch.context() as patch, socket.create_server(("127.0.0.1", 0)) as listening:
        patch.setattr(dial, "HANDSHAKE_SECONDS", 0.3)
        reason = await refused(version, request(MqttBroker(*listening.getsockname()), tls=True))
    assert reason.code == "mqtt_no_tls"
    assert "it did not answer within 0.3 s" in reason.detail


@on_each_loop
async def test_a_connect_cancelled_in_the_handshake_leaves_nothing_behind(version: Version) -> None:
    loop = asyncio.get_running_loop()
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.setblocking(False)
        before = asyncio.all_tasks()
        connecting = asyncio.ensure_future(refused(version, request(MqttBroker(*listening.getsockname()), tls=True)))
        end, _ = await loop.sock_accept(listening)
        with end:
            assert await loop.sock_recv(end, 10_000)
            connecting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await connecting
            assert await loop.sock_recv(end, 1) == b""
        assert asyncio.all_tasks() == before


# --- another protocol on the port ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spoken", "port", "code"),
    [
        ("tcp", "tls", "mqtt_unanswered"),
        ("tcp", "ws", "mqtt_websocket_expected"),
        ("tls", "tcp", "mqtt_no_tls"),
        ("tls", "ws", "mqtt_no_tls"),
        ("tls", "wss", "mqtt_websocket_expected"),
        ("ws", "tcp", "mqtt_websocket_protocol"),
        ("ws", "wss", "mqtt_websocket_protocol"),
        ("wss", "tcp", "mqtt_no_tls"),
        ("wss", "tls", "mqtt_websocket_protocol"),
    ],
)
async def test_a_port_that_speaks_something_else_is_told_from_a_broken_one(
    version: Version, broker: SecureMosquitto, spoken: str, port: str, code: str
) -> None:
    reason = await refused(version, request(broker, **{**broker.mqtt(spoken), "port": broker.port_of(port)}))
    assert reason.code == code


# --- passwords and rules ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["tcp", "tls", "ws", "wss"])
async def test_a_wrong_password_is_refused_until_the_broker_knows_it(
    version: Version, own_broker: Callable[..., SecureMosquitto], kind: str, unique: str
) -> None:
    broker = own_broker(passwords={"forwarder": "old"})
    credentials = {"username": "forwarder", "password": "new"}
    to = request(broker, unique, **broker.mqtt(kind), credentials=credentials)
    assert (await refused(version, to)).code == "mqtt_not_authorized"
    broker.set_passwords({"forwarder": "new"})
    broker.reload()
    await accepted(version, to)


@pytest.mark.parametrize("kind", ["tcp", "tls", "ws", "wss"])
async def test_a_password_that_is_revoked_ends_the_connection_and_the_next_says_why(
    version: Version, own_broker: Callable[..., SecureMosquitto], kind: str, unique: str
) -> None:
    broker = own_broker(passwords={"forwarder": "known"})
    credentials = {"username": "forwarder", "password": "known"}
    to = request(broker, unique, **broker.mqtt(kind), credentials=credentials)
    async with version.connected(to) as (connection, _):
        broker.set_passwords({"other": "known"})
        broker.reload()
        await ended(connection)
    assert (await refused(version, to)).code == "mqtt_not_authorized"
    broker.set_passwords({"forwarder": "known"})
    broker.reload()
    await accepted(version, to)


@pytest.mark.parametrize("kind", ["tcp", "tls", "ws", "wss"])
async def test_a_filter_that_is_not_granted_is_named_until_it_is(
    version: Version, own_broker: Callable[..., SecureMosquitto], tmp_path: Path, kind: str, unique: str
) -> None:
    # Mosquitto's acl_file grants every subscription, and then delivers nothing; its plugin refuses.
    rules = tmp_path / "rules.json"
    rules.write_text(json.dumps({"defaultACLAccess": {"subscribe": False}}))
    extra = (f"plugin {_dynamic_security()}", f"plugin_opt_config_file {rules}")
    broker = own_broker(extra=extra)
    to = request(broker, unique, **broker.mqtt(kind))
    async with version.connected(to) as (connection, _):
        with pytest.raises(SubscriptionRefusedError, match="plant/#") as raised:
            await connection.subscribe(subscriptions("plant/#"))
        assert raised.value.reason.code == "mqtt_subscription_refused"
        await connection.leave()
    rules.write_text(json.dumps({"defaultACLAccess": {"subscribe": True}}))
    broker.restart()
    async with version.connected(to) as (connection, _):
        assert await connection.subscribe(subscriptions("plant/#")) == {"plant/#": 1}
        await connection.leave()


def _dynamic_security() -> Path:
    """Find Mosquitto's plugin, which comes with it."""
    return next(Path("/usr/lib").glob("*/mosquitto_dynamic_security.so"))
