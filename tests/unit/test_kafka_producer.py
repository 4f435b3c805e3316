"""What a producer is made from: options, PEM files, and the errors aiokafka has no name for."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import socket
import ssl
import subprocess
from typing import TYPE_CHECKING, Any

import aiokafka.errors
import pytest
import trustme
from aiokafka.errors import KafkaConnectionError, KafkaTimeoutError, MessageSizeTooLargeError, for_code
from structlog.testing import capture_logs

from server.core.failures import Kind
from server.core.kafka_options import SslFiles, translate
from server.kafka import producer as producer_module
from server.kafka.producer import Cluster, Producer, classify
from server.kafka.tls import ConfigurationError, ReloadedContext, ssl_context

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def pem(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CA of our own, and a certificate with its key."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    folder = tmp_path_factory.mktemp("pem")

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)

    subject = ("-subj", "/CN=test", "-days", "2")
    openssl("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", "ca.key", "-out", "ca.pem", *subject)
    openssl("req", "-newkey", "rsa:2048", "-passout", "pass:pw", "-keyout", "key.pem", "-out", "req.pem", *subject[:2])
    openssl("x509", "-req", "-in", "req.pem", "-CA", "ca.pem", "-CAkey", "ca.key", "-out", "cert.pem", "-days", "2")
    (folder / "bad.pem").write_text("no certificate")
    return folder


def _files(folder: Path, **files: Any) -> SslFiles:
    named: dict[str, Any] = {
        name: str(folder / value) if name.endswith("_location") and isinstance(value, str) else value
        for name, value in files.items()
    }
    named.setdefault("ca_location", str(folder / "ca.pem"))
    return SslFiles(**named)


def test_the_servers_certificate_and_name_are_checked(pem: Path) -> None:
    context = ssl_context(_files(pem))
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.check_hostname
    assert len(context.get_ca_certs()) == 1


def test_checks_can_be_left_out_one_by_one(pem: Path) -> None:
    nameless = ssl_context(_files(pem, check_hostname=False))
    assert not nameless.check_hostname
    assert nameless.verify_mode is ssl.CERT_REQUIRED
    blind = ssl_context(_files(pem, verify=False))
    assert blind.verify_mode is ssl.CERT_NONE
    assert not blind.check_hostname


def test_a_ca_can_be_given_as_text(pem: Path) -> None:
    context = ssl_context(_files(pem, ca_location=None, ca_pem=(pem / "ca.pem").read_text()))
    assert len(context.get_ca_certs()) == 1


def test_the_clients_certificate_needs_its_keys_password(pem: Path) -> None:
    files = {"certificate_location": "cert.pem", "key_location": "key.pem"}
    ssl_context(_files(pem, **files, key_password="pw"))
    for wrong in ("wrong", "longer than OpenSSL takes" * 100):
        with pytest.raises(ConfigurationError, match=r"ssl\.certificate and ssl\.key") as refused:
            ssl_context(_files(pem, **files, key_password=wrong))
        assert wrong not in str(refused.value)


def test_a_certificate_and_its_key_can_be_given_as_text_and_leave_no_file(
    pem: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    certificate, key = (pem / "cert.pem").read_text(), (pem / "key.pem").read_text()
    ssl_context(_files(pem, certificate_pem=certificate, key_pem=key, key_password="pw"))
    ssl_context(_files(pem, certificate_location="cert.pem", key_pem=key, key_password="pw"))
    with pytest.raises(ConfigurationError, match=r"ssl\.certificate and ssl\.key"):
        ssl_context(_files(pem, certificate_pem="nonsense", key_pem=key, key_password="pw"))
    assert list(tmp_path.iterdir()) == []


def test_a_key_whose_password_is_missing_is_an_error_and_asks_nobody(pem: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"ssl\.certificate and ssl\.key"):
        ssl_context(_files(pem, certificate_location="cert.pem", key_location="key.pem"))


def test_ciphers_and_revocation_lists_are_used(pem: Path) -> None:
    context = ssl_context(_files(pem, ciphers="ECDHE+AESGCM", crl_location="ca.pem"))
    assert context.verify_flags & ssl.VerifyFlags.VERIFY_CRL_CHECK_LEAF
    assert any("ECDHE" in cipher["name"] for cipher in context.get_ciphers())


@pytest.mark.parametrize(("name", "why"), [("missing.pem", "No such file or directory"), ("bad.pem", "")])
def test_a_file_that_can_not_be_used_is_named_with_its_option(pem: Path, name: str, why: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"ssl.ca in kafka.config \(.*{name}\) can't be used: .*{why}"):
        ssl_context(_files(pem, ca_location=name))
    with pytest.raises(
        ConfigurationError, match=rf"ssl.crl.location in kafka.config \(.*{name}\) can't be used: .*{why}"
    ):
        ssl_context(_files(pem, crl_location=name))


def test_a_folder_of_cas_is_taken_as_librdkafka_does(pem: Path, tmp_path: Path) -> None:
    assert ssl_context(_files(tmp_path, ca_location="")).verify_mode is ssl.CERT_REQUIRED
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    subprocess.run(["openssl", "rehash", str(tmp_path)], check=True, capture_output=True)
    shaken_hands(ssl_context(_files(tmp_path, ca_location="")), authority)
    with pytest.raises(ssl.SSLCertVerificationError):
        shaken_hands(ssl_context(_files(pem)), authority)


# --- files that change ------------------------------------------------------------------------------------------------


def shaken_hands(context: ssl.SSLContext, authority: trustme.CA) -> None:
    """Do a TLS handshake in memory, with a server that has a certificate of this authority.

    Raises:
        SSLCertVerificationError: the client does not accept it.
    """
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("kafka.test").configure_cert(server)
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    client_end = context.wrap_bio(to_client, to_server, server_hostname="kafka.test")
    server_end = server.wrap_bio(to_server, to_client, server_side=True)
    for end in (client_end, server_end, client_end, server_end):
        with contextlib.suppress(ssl.SSLWantReadError):
            end.do_handshake()


@pytest.fixture
def authorities(tmp_path: Path) -> tuple[trustme.CA, trustme.CA]:
    """Return two CAs; the first of them is trusted."""
    authorities = trustme.CA(), trustme.CA()
    authorities[0].cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    return authorities


def test_each_connection_is_made_with_the_files_as_they_are(
    tmp_path: Path, authorities: tuple[trustme.CA, trustme.CA]
) -> None:
    first, second = authorities
    context = ReloadedContext(_files(tmp_path))
    shaken_hands(context, first)
    with pytest.raises(ssl.SSLCertVerificationError):
        shaken_hands(context, second)
    second.cert_pem.write_to_path(str(tmp_path / "new.pem"))
    (tmp_path / "new.pem").replace(tmp_path / "ca.pem")
    shaken_hands(context, second)
    with pytest.raises(ssl.SSLCertVerificationError):
        shaken_hands(context, first)


def test_files_that_do_not_change_are_read_once(tmp_path: Path, authorities: tuple[trustme.CA, trustme.CA]) -> None:
    context = ReloadedContext(_files(tmp_path))
    made = context.current()
    shaken_hands(context, authorities[0])
    assert context.current() is made
    assert not context.has_certificate
    assert ReloadedContext(_files(tmp_path, certificate_pem="c")).has_certificate


def test_what_is_changed_only_half_is_said_once_and_the_connection_made_as_before(
    tmp_path: Path, authorities: tuple[trustme.CA, trustme.CA]
) -> None:
    context = ReloadedContext(_files(tmp_path))
    shaken_hands(context, authorities[0])
    (tmp_path / "ca.pem").write_text("half a certificate")
    with capture_logs() as logs:
        for _ in range(3):
            shaken_hands(context, authorities[0])
    [entry] = logs
    assert entry["event"] == "certificates_not_reloaded"
    assert "ssl.ca in kafka.config" in entry["detail"]
    with pytest.raises(ConfigurationError):
        context.current()
    (tmp_path / "ca.pem").unlink()
    with capture_logs() as logs:
        shaken_hands(context, authorities[0])
    assert "No such file" in logs[0]["detail"]


def test_without_ever_having_had_good_files_no_connection_is_made(tmp_path: Path) -> None:
    with pytest.raises(ssl.SSLError, match=r"ssl\.ca in kafka\.config"):
        shaken_hands(ReloadedContext(_files(tmp_path)), trustme.CA())


def test_ciphers_that_do_not_exist_are_named(pem: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"ssl.cipher.suites in kafka.config can't be used"):
        ssl_context(_files(pem, ciphers="NONSENSE"))


async def test_what_aiokafka_refuses_to_be_made_of_is_a_matter_of_the_configuration() -> None:
    with pytest.raises(ConfigurationError, match=r"aiokafka refuses kafka\.config: ") as refused:
        await Producer.start(Cluster("localhost:9092x", translate({})), max_batch_size=1000)
    assert classify(refused.value, topic="k").reason.code == "kafka_configuration"
    assert classify(refused.value, topic="k").kind is Kind.RETRY


def test_a_cluster_has_the_configured_servers_or_else_its_address(pem: Path) -> None:
    assert Cluster("a:1", translate({})).bootstrap_servers == "a:1"
    cluster = Cluster(
        "a:1",
        translate({"bootstrap.servers": "b:2,c:3", "security.protocol": "SSL", "ssl.ca.location": str(pem / "ca.pem")}),
    )
    arguments = cluster.arguments(max_batch_size=777)
    assert arguments["bootstrap_servers"] == "b:2,c:3"
    assert arguments["max_batch_size"] == 777
    assert isinstance(arguments["ssl_context"], ssl.SSLContext)
    assert cluster.arguments(max_batch_size=1)["ssl_context"] is arguments["ssl_context"]  # one for all producers
    assert Cluster("a:1", translate({})).arguments(max_batch_size=1)["ssl_context"] is None


def test_the_more_producers_there_are_the_less_often_each_tries_again_unless_the_configuration_says() -> None:
    cluster = Cluster("kafka:9092", translate({}))
    waits = []
    for cluster.sinks in (0, 1, 33, 200, 1_000):
        waits.append(cluster.arguments(max_batch_size=1)["retry_backoff_ms"])
    assert waits == [100, 100, 330, 2_000, 2_000]
    said = Cluster("kafka:9092", translate({"retry.backoff.ms": "50"}), sinks=1_000)
    assert said.arguments(max_batch_size=1)["retry_backoff_ms"] == 50


def test_readers_rest_as_configured_or_else_6_ms_and_longer_while_the_loop_is_late() -> None:
    cluster, configured = Cluster("kafka:9092", translate({})), Cluster("kafka:9092", translate({"linger.ms": 20}))
    for _ in range(10):
        assert (cluster.rests.seconds, configured.rests.seconds) == (0.006, 0.02)
        cluster.rests.sampled(0.0, 1_000)
    for _ in range(100):
        for each in (cluster, configured):
            each.rests.sampled(1.0, 1_000)
    assert cluster.rests.seconds > configured.rests.seconds == 0.02


# --- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [74, 75, 76, 77, 78, 80, 81, 87, 89, 90, 100, 103])
def test_codes_that_aiokafka_does_not_know_keep_their_number(code: int) -> None:
    error = for_code(code)()
    assert error.errno == code
    assert isinstance(error, aiokafka.errors.BrokerResponseError)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (MessageSizeTooLargeError(), Kind.POISON),
        (for_code(87)(), Kind.POISON),
        (for_code(17)(), Kind.INVALID_TOPIC),
        (for_code(3)(), Kind.RETRY),
        (KafkaTimeoutError(), Kind.RETRY),
        (KafkaConnectionError("refused"), Kind.RETRY),
        (for_code(12345)(), Kind.UNNAMED),
    ],
)
def test_errors_of_aiokafka_are_classified_by_their_code(error: BaseException, kind: Kind) -> None:
    assert classify(error, topic="k").kind is kind


def test_what_the_client_gives_up_with_names_the_servers() -> None:
    reason = classify(KafkaConnectionError("refused"), topic="k", servers="a:1").reason
    assert (reason.code, reason.detail) == ("kafka_unreachable", "no connection to Kafka at a:1")
    assert classify(TimeoutError(), topic="k", servers="a:1").reason.code == "kafka_timeout"


def test_an_error_without_a_code_is_named_by_its_class_and_text() -> None:
    reason = classify(OSError(5, "broken"), topic="k").reason
    assert (reason.code, reason.detail) == ("kafka_unavailable", "OSError: [Errno 5] broken")


# --- without a Kafka --------------------------------------------------------------------------------------------------


async def test_a_start_without_kafka_fails_at_once_and_leaves_nothing_open() -> None:
    cluster = Cluster("127.0.0.1:1", translate({}))
    with pytest.raises(KafkaConnectionError):
        await Producer.start(cluster, max_batch_size=1000)


async def test_a_start_that_nobody_answers_ends_at_its_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(producer_module, "START_TIMEOUT_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:  # connects, and is never read
        cluster = Cluster(f"127.0.0.1:{silent.getsockname()[1]}", translate({}))
        with pytest.raises(TimeoutError):
            await Producer.start(cluster, max_batch_size=1000)
    for _ in range(3):
        await asyncio.sleep(0)  # a cancelled task needs its turn
    assert asyncio.all_tasks() == {asyncio.current_task()}
