"""A sink and a real Kafka with TLS, SASL and ACLs: what goes wrong has its reason, and is mended without a restart."""

from __future__ import annotations

import asyncio
import shutil
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest
import trustme

from server.core.acks import AckWindow
from server.core.kafka_options import translate
from server.core.mapping import Mapping
from server.kafka import oauth
from server.kafka.errorlog import ERROR_LOG
from server.kafka.producer import Cluster, Producer
from server.kafka.sink import Sink
from server.kafka.tls import ReloadedContext
from tests.brokers.kafka_secured import AUDIENCE, PLAIN_PASSWORD, PLAIN_USER, SecuredKafka
from tests.brokers.process import free_port
from tests.devices import publish
from tests.faults.proxy import HOST, Proxy
from tests.service import Service
from tests.tokenendpoint import TokenEndpoint

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from server.core.lifecycle import Reason
    from tests.brokers import MqttBroker

TIMEOUT = 30.0  # the longest that recovery may take
_TICK = 0.02
_SECRETS = ("hunter2", "wrong-password")
_PAGES = ("/api/v1/mappings/m/status", "/api/v1/mappings", "/api/v1/events", "/api/v1/config/export", "/metrics")


@dataclass(frozen=True, slots=True)
class Message:
    """A message as the sink sees it."""

    payload: bytes
    topic: str = "t"
    qos: int = 1
    packet_id: int | None = 1


@dataclass
class Writing:
    """A sink that writes; `reason` is what it says of Kafka now, None while all is well."""

    kafka: SecuredKafka
    topic: str
    window: AckWindow[Message] = field(default_factory=AckWindow)
    sink: Sink = field(init=False)
    told: list[Reason | None] = field(default_factory=list)
    sent: list[bytes] = field(default_factory=list)

    def send(self) -> None:
        message = Message(b"%d" % len(self.sent))
        self.sent.append(message.payload)
        arrival = self.window.arrive([message], 1, 0.0)
        self.sink.add(arrival, [message])
        self.window.confirm(arrival)

    async def trouble(self, code: str, timeout: float = TIMEOUT) -> str:
        """Wait for a reason with this code; returns its details."""
        await self._until(lambda: bool(self.told) and getattr(self.told[-1], "code", None) == code, code, timeout)
        reason = self.told[-1]
        assert reason is not None
        return reason.detail

    async def well(self) -> None:
        """Wait until all is well, and everything sent is in Kafka, in order, once."""
        await self._until(lambda: bool(self.told) and self.told[-1] is None, "all well", TIMEOUT)
        self.send()
        async with asyncio.timeout(TIMEOUT):
            await self.sink.drained()
        await self._until(lambda: self.told[-1] is None, "still well", TIMEOUT)
        assert [record.value for record in await self.kafka.read_all(self.topic)] == self.sent

    async def _until(self, holds: Callable[[], bool], what: str, timeout: float) -> None:
        try:
            async with asyncio.timeout(timeout):
                while not holds():
                    await asyncio.sleep(_TICK)
        except TimeoutError:
            pytest.fail(f"not {what} within {timeout:g} s, but {self.told}")

    # What the sink reports.

    def kafka_trouble(self, reason: Reason | None) -> None:
        self.told.append(reason)

    def delivered(self, messages: int, size: int) -> None:
        pass

    def dead_lettered(self, messages: int) -> None:
        pytest.fail(f"{messages} dead letters")

    def dropped(self, reason: str, messages: int) -> None:
        pytest.fail(f"{messages} dropped: {reason}")

    def progressed(self) -> None:
        pass

    def waited(self, seconds: float, messages: int) -> None:
        pass

    def kafka_reconnected(self, reason: str) -> None:
        pass


class Spy:
    """Counts the calls of a method, which does what it always does."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, owner: type, name: str) -> None:
        self.calls = 0
        method = getattr(owner, name)

        def called(*arguments: Any, **named: Any) -> Any:
            self.calls += 1
            return method(*arguments, **named)

        monkeypatch.setattr(owner, name, called)


class Site:
    """The secured Kafka, and a user with a topic of its own for one test."""

    def __init__(self, kafka: SecuredKafka, unique: str, folder: Path) -> None:
        self.kafka = kafka
        self.user = f"user-{unique}"
        self.password = f"hunter2-{unique}"
        self.topic = f"topic-{unique}"
        self.folder = folder

    def tls(self, **more: Any) -> dict[str, Any]:
        return {"security.protocol": "ssl", "ssl.ca.location": str(self.kafka.ca), **more}

    def mutual(self, user: str | None = None, **how: Any) -> dict[str, Any]:
        files = self.kafka.client_files(self.folder, user or self.user, **how)
        return self.tls(
            **{"ssl.certificate.location": str(files.certificate), "ssl.key.location": str(files.key)},
        )

    def scram(self, mechanism: str = "SCRAM-SHA-512", **more: Any) -> dict[str, Any]:
        return {
            "security.protocol": "sasl_ssl",
            "ssl.ca.location": str(self.kafka.ca),
            "sasl.mechanism": mechanism,
            "sasl.username": self.user,
            "sasl.password": self.password,
            **more,
        }

    @asynccontextmanager
    async def moving(
        self, listener: str, config: dict[str, Any]
    ) -> AsyncIterator[tuple[Writing, Callable[[str], None]]]:
        """Write by way of an address that leads to a listener, and to another from when the second value is called."""

        def move(name: str) -> None:
            nonlocal listener
            listener = name

        def target() -> tuple[str, int]:
            host, _, port = self.kafka.address(listener).rpartition(":")
            return host, int(port)

        async with Proxy(target) as proxy, self.writing(f"{HOST}:{proxy.port}", config) as writing:
            yield writing, move

    @asynccontextmanager
    async def writing(self, listener: str, config: dict[str, Any]) -> AsyncIterator[Writing]:
        """Write to a listener, or to an address."""
        address = listener if ":" in listener else self.kafka.address(listener)
        cluster = Cluster(address, translate(config))
        mapping = Mapping.model_validate({"name": "m", "mqtt": {"topic": "#"}, "kafka": {"topic": self.topic}})
        writing = Writing(self.kafka, self.topic)
        writing.sink = Sink(cluster, mapping, writing.window, outcomes=writing, random=lambda: 0.0)
        task = asyncio.create_task(writing.sink.run())
        try:
            yield writing
            assert not task.done()
        finally:
            task.cancel()
            await asyncio.wait([task])
        for reason in writing.told:
            assert reason is None or not any(secret in reason.detail for secret in _SECRETS)


@pytest.fixture
async def site(secured_kafka: SecuredKafka, unique: str, tmp_path: Path) -> AsyncIterator[Site]:
    """Return the secured Kafka with an empty topic."""
    ERROR_LOG.install()
    site = Site(secured_kafka, unique, tmp_path)
    await secured_kafka.create_topic(site.topic)
    yield site
    await secured_kafka.delete_topic(site.topic)


# --- what goes well ---------------------------------------------------------------------------------------------------


async def test_over_tls(site: Site) -> None:
    async with site.writing("TLS", site.tls()) as writing:
        await writing.well()


async def test_with_a_clients_certificate(site: Site) -> None:
    site.kafka.grant(site.user, site.topic)
    async with site.writing("MUTUAL", site.mutual()) as writing:
        await writing.well()


async def test_with_everything_given_as_text(site: Site) -> None:
    site.kafka.grant(site.user, site.topic)
    files = site.kafka.client_files(site.folder, site.user)
    texts = {
        "ssl.ca.pem": site.kafka.ca.read_text(),
        "ssl.certificate.pem": files.certificate.read_text(),
        "ssl.key.pem": files.key.read_text(),
    }
    async with site.writing("MUTUAL", {"security.protocol": "ssl", **texts}) as writing:
        await writing.well()


@pytest.mark.parametrize("mechanism", ["SCRAM-SHA-256", "SCRAM-SHA-512"])
async def test_with_scram(site: Site, mechanism: str) -> None:
    site.kafka.set_password(site.user, site.password, mechanism)
    site.kafka.grant(site.user, site.topic)
    async with site.writing("SASL_TLS", site.scram(mechanism)) as writing:
        await writing.well()


async def test_with_plain(site: Site) -> None:
    site.kafka.grant(PLAIN_USER, site.topic)
    config = site.scram("PLAIN", **{"sasl.username": PLAIN_USER, "sasl.password": PLAIN_PASSWORD})
    async with site.writing("SASL_TLS", config) as writing:
        await writing.well()


async def test_with_tokens_over_https(site: Site) -> None:
    site.kafka.grant(site.user, site.topic)
    endpoint = TokenEndpoint(lambda: site.kafka.token(site.user))
    async with endpoint.serving(site.kafka.authority):
        more = {
            "https.ca.location": str(site.kafka.ca),
            "sasl.oauthbearer.scope": "kafka write",
            "sasl.oauthbearer.extensions": "logicalCluster=lkc-1,identityPoolId=pool-1",
        }
        async with site.writing("SASL_TLS", site.scram(**endpoint.config(**more))) as writing:
            await writing.well()
    assert [form["scope"] for form in endpoint.asked] == [["kafka write"]]


# --- the broker's certificate -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "how", "code", "said"),
    [
        ((), {"days": -1}, "kafka_certificate_expired", "certificate has expired"),
        ((), {"authority": trustme.CA()}, "kafka_certificate_untrusted", "ssl.ca.location"),
        (("kafka.example",), {}, "kafka_certificate_host_name", "127.0.0.1"),
    ],
)
async def test_a_certificate_of_the_broker_that_is_not_accepted(
    site: Site, names: tuple[str, ...], how: dict[str, Any], code: str, said: str
) -> None:
    await asyncio.to_thread(site.kafka.present, *names, **how)
    try:
        async with site.writing("TLS", site.tls()) as writing:
            assert said in await writing.trouble(code)
            await asyncio.to_thread(site.kafka.present)
            await writing.well()
    finally:
        await asyncio.to_thread(site.kafka.present)


async def test_an_advertised_address_that_is_not_in_the_certificate(site: Site) -> None:
    """The first connection is made by a name that is."""
    await asyncio.to_thread(site.kafka.present, "localhost")
    try:
        by_name = site.kafka.address("TLS").replace("127.0.0.1", "localhost")
        async with site.writing(by_name, site.tls()) as writing:
            assert "addresses it advertises" in await writing.trouble("kafka_certificate_host_name")
            await asyncio.to_thread(site.kafka.present, "localhost", "127.0.0.1")
            await writing.well()
    finally:
        await asyncio.to_thread(site.kafka.present)


async def test_a_certificate_that_is_over_is_noticed_by_a_producer_that_runs(site: Site) -> None:
    async with site.writing("TLS", site.tls(**{"connections.max.idle.ms": 300})) as writing:
        await writing.well()
        await asyncio.to_thread(site.kafka.present, days=-1)
        try:
            async with asyncio.timeout(TIMEOUT):
                while writing.told[-1] is None:
                    await asyncio.sleep(0.6)  # idle for so long that the connection is closed
                    writing.send()
            await writing.trouble("kafka_certificate_expired")
        finally:
            await asyncio.to_thread(site.kafka.present)
        await writing.well()


@pytest.mark.parametrize(
    ("names", "how", "off"),
    [
        (("kafka.example",), {}, {"ssl.endpoint.identification.algorithm": "none"}),
        ((), {"authority": trustme.CA()}, {"enable.ssl.certificate.verification": "false"}),
    ],
)
async def test_checks_that_are_switched_off_are_not_made(
    site: Site, names: tuple[str, ...], how: dict[str, Any], off: dict[str, str]
) -> None:
    await asyncio.to_thread(site.kafka.present, *names, **how)
    try:
        async with site.writing("TLS", site.tls(**off)) as writing:
            await writing.well()
    finally:
        await asyncio.to_thread(site.kafka.present)


# --- the client's certificate -----------------------------------------------------------------------------------------


async def test_no_client_certificate_where_one_is_wanted(site: Site) -> None:
    async with site.moving("MUTUAL", site.tls()) as (writing, move):
        assert "set ssl.certificate.location and ssl.key.location" in await writing.trouble("kafka_client_certificate")
        move("TLS")
        await writing.well()


@pytest.mark.parametrize("how", [{"authority": trustme.CA()}, {"days": -1}])
async def test_a_client_certificate_that_kafka_refuses_until_its_files_are_replaced(
    site: Site, how: dict[str, Any]
) -> None:
    site.kafka.grant(site.user, site.topic)
    async with site.writing("MUTUAL", site.mutual(**how)) as writing:
        assert "refuses the client's certificate" in await writing.trouble("kafka_client_certificate")
        site.kafka.client_files(site.folder, site.user)
        await writing.well()


async def test_a_client_certificate_that_is_not_there_yet(site: Site) -> None:
    site.kafka.grant(site.user, site.topic)
    config = site.mutual()
    shutil.move(site.folder / "client.pem", site.folder / "later.pem")
    async with site.writing("MUTUAL", config) as writing:
        assert "client.pem" in await writing.trouble("kafka_configuration")
        shutil.move(site.folder / "later.pem", site.folder / "client.pem")
        await writing.well()


async def test_a_running_producer_connects_again_with_the_files_as_they_are_then(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The old certificates would not do: the broker has one of another CA, and takes another user's only."""
    successor, other = f"{site.user}-2", trustme.CA()
    ca = site.folder / "ca.pem"
    shutil.copy(site.kafka.ca, ca)
    site.kafka.grant(site.user, site.topic)
    config = site.mutual() | {"ssl.ca.location": str(ca), "connections.max.idle.ms": 300}
    ends, handshakes = Spy(monkeypatch, Producer, "abandon"), Spy(monkeypatch, ReloadedContext, "wrap_bio")
    try:
        async with site.writing("MUTUAL", config) as writing:
            await writing.well()
            told = list(writing.told)
            site.kafka.client_files(site.folder, successor)
            site.kafka.grant(successor, site.topic)
            site.kafka.revoke(site.user)
            await asyncio.to_thread(site.kafka.present, authority=other, listener="MUTUAL")
            other.cert_pem.write_to_path(str(ca))
            before = handshakes.calls
            async with asyncio.timeout(TIMEOUT):
                while handshakes.calls == before:
                    await asyncio.sleep(0.6)  # idle for so long that the connection is closed
                    writing.send()
            await writing.well()
            assert writing.told == told
            assert ends.calls == 0
    finally:
        await asyncio.to_thread(site.kafka.present, listener="MUTUAL")


# --- logging in -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mechanism", ["SCRAM-SHA-256", "SCRAM-SHA-512"])
async def test_a_wrong_password(site: Site, mechanism: str) -> None:
    site.kafka.set_password(site.user, "wrong-password")
    site.kafka.grant(site.user, site.topic)
    async with site.writing("SASL_TLS", site.scram(mechanism)) as writing:
        assert f"refuses the credentials (sasl.mechanism {mechanism})" in await writing.trouble("kafka_authentication")
        site.kafka.set_password(site.user, site.password)
        await writing.well()


async def test_a_wrong_password_of_plain(site: Site) -> None:
    site.kafka.grant(PLAIN_USER, site.topic)
    login = {"sasl.username": PLAIN_USER, "sasl.password": PLAIN_PASSWORD, "security.protocol": "sasl_plaintext"}
    async with site.moving("OLD", site.scram("PLAIN", **login)) as (writing, move):
        assert "refuses the credentials (sasl.mechanism PLAIN)" in await writing.trouble("kafka_authentication")
        move("SASL")
        await writing.well()


async def test_a_mechanism_that_the_listener_does_not_offer(site: Site) -> None:
    site.kafka.set_password(site.user, site.password)
    site.kafka.grant(site.user, site.topic)
    config = site.scram("SCRAM-SHA-256", **{"security.protocol": "sasl_plaintext"})
    async with site.moving("OLD", config) as (writing, move):
        assert "does not offer sasl.mechanism SCRAM-SHA-256" in await writing.trouble("kafka_sasl_mechanism")
        move("SASL")
        await writing.well()


async def test_a_user_that_is_deleted_while_it_writes(site: Site) -> None:
    config = site.scram(**{"security.protocol": "sasl_plaintext"})
    site.kafka.set_password(site.user, site.password)
    site.kafka.grant(site.user, site.topic)
    async with site.writing("SASL", config) as writing:
        await writing.well()
        site.kafka.remove_user(site.user)
        async with asyncio.timeout(TIMEOUT):
            while writing.told[-1] is None:  # until Kafka ends the connection, and with it the session
                writing.send()
                await asyncio.sleep(0.2)
        await writing.trouble("kafka_authentication")
        site.kafka.set_password(site.user, site.password)
        await writing.well()


@pytest.mark.parametrize(
    ("listener", "protocol", "said"),
    [
        ("TLS", "plaintext", "answers in TLS, but security.protocol is plaintext"),
        ("SASL_TLS", "sasl_plaintext", "answers in TLS, but security.protocol is sasl_plaintext; set sasl_ssl"),
        ("PLAINTEXT", "ssl", "does not answer in TLS"),
        ("SASL", "sasl_ssl", "does not answer in TLS"),
        ("SASL", "plaintext", "does the listener expect a login"),
        ("SASL_TLS", "ssl", "does the listener expect a login"),
        ("PLAINTEXT", "sasl_plaintext", "does not expect a login"),
        ("TLS", "sasl_ssl", "does not expect a login"),
    ],
)
async def test_a_security_protocol_that_is_not_the_listeners(
    site: Site, listener: str, protocol: str, said: str
) -> None:
    site.kafka.set_password(site.user, site.password)
    site.kafka.grant(site.user, site.topic)
    config = (site.scram() if protocol.startswith("sasl") else site.tls()) | {"security.protocol": protocol}
    right = {"plaintext": "PLAINTEXT", "ssl": "TLS", "sasl_plaintext": "SASL", "sasl_ssl": "SASL_TLS"}[protocol]
    async with site.moving(listener, config) as (writing, move):
        detail = await writing.trouble("kafka_security_protocol")
        assert said in detail
        assert f"security.protocol is {protocol}" in detail
        move(right)
        await writing.well()


# --- what is granted --------------------------------------------------------------------------------------------------


async def test_a_user_who_may_write_nothing_at_all(site: Site) -> None:
    site.kafka.set_password(site.user, site.password)
    async with site.writing("SASL_TLS", site.scram()) as writing:
        assert f"grant WRITE on '{site.topic}'" in await writing.trouble("kafka_cluster_not_authorized")
        site.kafka.grant(site.user, site.topic)
        await writing.well()


@pytest.mark.parametrize("operations", [(), ("DESCRIBE",)])
async def test_a_topic_that_the_user_may_not_write_to(site: Site, operations: tuple[str, ...]) -> None:
    site.kafka.set_password(site.user, site.password)
    site.kafka.grant(site.user, "another-topic")
    if operations:
        site.kafka.grant(site.user, site.topic, *operations)
    async with site.writing("SASL_TLS", site.scram()) as writing:
        writing.send()
        assert site.topic in await writing.trouble("kafka_not_authorized")
        site.kafka.grant(site.user, site.topic)
        await writing.well()


async def test_an_acl_that_is_taken_back_while_it_writes(site: Site) -> None:
    site.kafka.set_password(site.user, site.password)
    site.kafka.grant(site.user, "another-topic")
    site.kafka.grant(site.user, site.topic)
    async with site.writing("SASL_TLS", site.scram()) as writing:
        await writing.well()
        site.kafka.revoke(site.user, site.topic)
        writing.send()
        assert site.topic in await writing.trouble("kafka_not_authorized")
        site.kafka.grant(site.user, site.topic)
        await writing.well()


# --- tokens -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ((401, b'{"error": "invalid_client", "error_description": "client-secret-hunter2?"}'), "invalid_client: ***?"),
        ((503, b"<html>"), "answered 503"),
        ((200, b'{"token": 1}'), "without a usable access_token"),
        (None, "did not answer within"),
    ],
)
async def test_a_token_endpoint_that_gives_no_token(
    site: Site, monkeypatch: pytest.MonkeyPatch, answer: tuple[int, bytes] | None, said: str
) -> None:
    if answer is None:
        monkeypatch.setattr(oauth, "TIMEOUT_SECONDS", 0.5)
    site.kafka.grant(site.user, site.topic)
    endpoint = TokenEndpoint(lambda: site.kafka.token(site.user), answer=answer)
    async with (
        endpoint.serving(),
        site.writing("SASL_TLS", site.scram(**endpoint.config())) as writing,
    ):
        assert said in await writing.trouble("kafka_token_endpoint")
        monkeypatch.undo()
        endpoint.answer = "a token"
        await writing.well()


async def test_a_token_endpoint_that_is_down(site: Site) -> None:
    site.kafka.grant(site.user, site.topic)
    endpoint = TokenEndpoint(lambda: site.kafka.token(site.user))
    port = free_port()
    endpoint.url = f"http://127.0.0.1:{port}/oauth2/token?tenant=hunter2"
    async with site.writing("SASL_TLS", site.scram(**endpoint.config())) as writing:
        assert "can't be reached" in await writing.trouble("kafka_token_endpoint")
        async with endpoint.serving(port=port):
            await writing.well()


async def test_a_token_that_kafka_refuses_is_not_kept(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(oauth, "_REFUSED_AFTER_SECONDS", 0.2)
    site.kafka.grant(site.user, site.topic)
    audience = "somebody else"
    endpoint = TokenEndpoint(lambda: site.kafka.token(site.user, audience=audience))
    async with endpoint.serving(), site.writing("SASL_TLS", site.scram(**endpoint.config())) as writing:
        assert "refuses the token" in await writing.trouble("kafka_authentication")
        audience = AUDIENCE
        await writing.well()


async def test_a_token_that_ends_is_followed_by_another_and_nobody_notices(site: Site) -> None:
    site.kafka.grant(site.user, site.topic)
    endpoint = TokenEndpoint(lambda: site.kafka.token(site.user, seconds=4), lifetime=4)
    async with endpoint.serving(), site.writing("SASL_TLS", site.scram(**endpoint.config())) as writing:
        await writing.well()
        told = list(writing.told)
        async with asyncio.timeout(TIMEOUT):
            while len(endpoint.asked) < 2:
                writing.send()
                await asyncio.sleep(0.1)
        await writing.well()
        assert writing.told == told


# --- the whole service ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", ["info", "debug"])
async def test_the_service_recovers_from_refused_credentials_and_shows_no_secret(
    site: Site, mosquitto: MqttBroker, unique: str, level: str
) -> None:
    endpoint = TokenEndpoint(lambda: site.kafka.token(site.user), answer=(401, b'{"error": "invalid_client"}'))
    site.kafka.grant(site.user, site.topic)
    async with endpoint.serving():
        config = site.mutual() | site.scram(**endpoint.config(**{"ssl.key.password": "key-hunter2"}))
        host, _, port = site.kafka.address("SASL_TLS").rpartition(":")
        service = Service(
            site.folder / "service",
            mqtt_broker=mosquitto,
            kafka_broker=site.kafka,
            forwarding=[{"name": "m", "mqtt": {"topic": f"{unique}/#"}, "kafka": {"topic": site.topic}}],
            client_id=unique,
            kafka={"bootstrap_server": host, "port": int(port), "config": config},
            env={"MKF_LOG_LEVEL": level},
        )
        async with service:
            await service.wait_ready()
            status = await service.wait_state("m", "retrying")
            assert status["reason"].startswith("kafka_token_endpoint: ")
            seen = [str(status), *[(await service.api.get(path)).text for path in _PAGES]]
            endpoint.answer = "a token"
            await service.wait_state("m")
            await publish(mosquitto.host, mosquitto.port, [(f"{unique}/t", b"1")], 1)
            await site.kafka.wait_for_records(site.topic, 1)
            seen += [(await service.api.get(path)).text for path in _PAGES]
        seen += [service.log_path.read_text(), *_contents(service.folder, "mkf.db*")]
    for text in seen:
        assert "hunter2" not in text
        assert "eyJ" not in text  # how every token begins
    assert "kafka_token_endpoint" in service.log_path.read_text()


def _contents(folder: Path, pattern: str) -> list[str]:
    found = [path.read_bytes().decode(errors="replace") for path in folder.glob(pattern)]
    assert found
    return found
