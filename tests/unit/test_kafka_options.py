"""librdkafka's options, translated."""

from __future__ import annotations

import ctypes
import inspect
import re
from typing import TYPE_CHECKING, Any

import pytest
from aiokafka import AIOKafkaProducer
from hypothesis import given
from hypothesis import strategies as st

from server.core.kafka_options import KafkaOptionsError, SslFiles, translate
from server.core.librdkafka_names import CONSUMER_ONLY_NAMES, PRODUCER_NAMES
from tests import librdkafka

if TYPE_CHECKING:
    from pathlib import Path

_SASL = {"security.protocol": "sasl_ssl", "sasl.mechanism": "PLAIN", "sasl.username": "u", "sasl.password": "hunter2"}


def _problems(config: dict[str, Any]) -> dict[str, str]:
    with pytest.raises(KafkaOptionsError) as refused:
        translate(config)
    assert all(key in str(refused.value) for key, _ in refused.value.problems)
    return dict(refused.value.problems)


def _warned(config: dict[str, Any]) -> str:
    [warning] = translate(config).warnings
    return warning


def test_the_known_names_are_those_of_the_installed_librdkafka(tmp_path: Path) -> None:
    c, table = ctypes.CDLL(None), tmp_path / "properties.md"
    c.fopen.restype = ctypes.c_void_p
    c.fclose.argtypes = [ctypes.c_void_p]
    file = c.fopen(str(table).encode(), b"w")
    show = librdkafka.load().rd_kafka_conf_properties_show
    show.argtypes = [ctypes.c_void_p]
    show(file)
    c.fclose(file)
    rows = re.findall(r"^(\S+) +\| +([CP*]) +\|", table.read_text(), flags=re.MULTILINE)
    producer = {name for name, scope in rows if scope != "C"}

    assert producer == PRODUCER_NAMES
    assert {name for name, _ in rows} - producer == CONSUMER_ONLY_NAMES


def test_nothing_configured_gives_safe_defaults() -> None:
    options = translate({})

    assert options.producer == {"acks": -1, "enable_idempotence": True, "max_batch_size": 1_000_000}
    assert options.partitioner == "murmur2_random"
    assert (options.bootstrap_servers, options.ssl, options.linger_ms, options.record_limit) == (None, None, None, None)
    assert options.warnings == ()


@pytest.mark.parametrize(
    ("name", "value", "argument", "expected"),
    [
        ("client.id", "c", "client_id", "c"),
        ("security.protocol", "PlainText", "security_protocol", "PLAINTEXT"),
        ("compression.type", "LZ4", "compression_type", "lz4"),
        ("compression.codec", "none", "compression_type", None),
        ("batch.size", "16384", "max_batch_size", 16_384),
        ("acks", "all", "acks", -1),
        ("acks", "-1", "acks", -1),
        ("request.required.acks", -1, "acks", -1),
        ("enable.idempotence", "T", "enable_idempotence", True),
        ("request.timeout.ms", 5000, "request_timeout_ms", 5000),
        ("socket.timeout.ms", "5000", "request_timeout_ms", 5000),
        ("retry.backoff.ms", 1, "retry_backoff_ms", 1),
        ("metadata.max.age.ms", 1000, "metadata_max_age_ms", 1000),
        ("topic.metadata.refresh.interval.ms", 1000, "metadata_max_age_ms", 1000),
        ("topic.metadata.refresh.interval.ms", -1, "metadata_max_age_ms", 86_400_000),
        ("connections.max.idle.ms", 0, "connections_max_idle_ms", None),
        ("connections.max.idle.ms", 1000, "connections_max_idle_ms", 1000),
    ],
)
def test_a_name_becomes_aiokafkas_argument(name: str, value: Any, argument: str, expected: Any) -> None:
    options = translate({name: value})

    assert options.producer[argument] == expected
    assert options.warnings == ()


@pytest.mark.parametrize(
    ("name", "value", "attribute", "expected"),
    [
        ("bootstrap.servers", "a:1,b:2", "bootstrap_servers", "a:1,b:2"),
        ("metadata.broker.list", "a", "bootstrap_servers", "a"),
        ("bootstrap.servers", " [::1]:1 , b,", "bootstrap_servers", "[::1]:1,b"),
        ("linger.ms", "0.5", "linger_ms", 0.5),
        ("queue.buffering.max.ms", 5, "linger_ms", 5.0),
        ("message.max.bytes", 1000, "record_limit", 1000),
        ("partitioner", "Consistent_Random", "partitioner", "consistent_random"),
    ],
)
def test_a_name_becomes_the_sinks_setting(name: str, value: Any, attribute: str, expected: Any) -> None:
    assert getattr(translate({name: value}), attribute) == expected
    assert set(translate({name: value}).producer) == {"acks", "enable_idempotence", "max_batch_size"}


def test_aiokafka_takes_every_argument() -> None:
    config: dict[str, Any] = {
        **_SASL,
        "client.id": "c",
        "sasl.kerberos.service.name": "k",
        "compression.type": "zstd",
        "request.timeout.ms": 1,
        "retry.backoff.ms": 1,
        "metadata.max.age.ms": 1,
        "connections.max.idle.ms": 0,
    }

    assert translate(config).producer.keys() <= inspect.signature(AIOKafkaProducer).parameters.keys()


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("linger.ms", "soon", "from 0 to 900000"),
        ("linger.ms", "nan", "from 0 to 900000"),
        ("linger.ms", -1, "from 0 to 900000"),
        ("batch.size", 0, "from 1 to 2147483647"),
        ("batch.size", 2**31, "from 1 to 2147483647"),
        ("batch.size", True, "from 1 to 2147483647"),
        ("message.max.bytes", 1.5, "from 1000 to 1000000000"),
        ("enable.idempotence", "maybe", "true or false"),
        ("security.protocol", "tls", "one of PLAINTEXT, SSL"),
        ("compression.type", "brotli", "one of none, gzip"),
        ("acks", 0, "could never acknowledge"),
        ("acks", 2, "all, -1 or 1"),
        ("partitioner", "random", "breaks the order"),
        ("partitioner", "sticky", "one of murmur2_random"),
        ("client.id", " ", "must not be empty"),
    ],
)
def test_a_value_out_of_range_is_refused_saying_what_is_expected(name: str, value: Any, expected: str) -> None:
    assert expected in _problems({name: value})[name]


@pytest.mark.parametrize(
    ("name", "instead"),
    [
        ("ssl.keystore.location", "ssl.certificate.location"),
        ("ssl.truststore.password", "ssl.ca.location"),
        ("ssl.engine.id", "ssl.key.location"),
        ("sasl.jaas.config", "sasl.username"),
        ("sasl.kerberos.keytab", "kinit"),
        ("sasl.kerberos.principal", "kinit"),
        ("transactional.id", "enable.idempotence"),
        ("plugin.library.paths", "librdkafka"),
        ("dr_msg_cb", "callbacks"),
        ("ssl.certificate.verify_cb", "callbacks"),
        ("group.id", "only produces"),
        ("auto.offset.reset", "only produces"),
        ("lingr.ms", "did you mean 'linger.ms'?"),
        ("Compression_Type", "did you mean 'compression.type'?"),
        ("zzzzzzzz", "unknown option"),
    ],
)
def test_a_name_that_cannot_work_is_refused_saying_what_to_use(name: str, instead: str) -> None:
    assert instead in _problems({name: "x"})[name]


def test_all_problems_come_at_once() -> None:
    assert set(_problems({"acks": 0, "group.id": "g", "lingr.ms": 1, "batch.size": "x"})) == {
        "acks",
        "group.id",
        "lingr.ms",
        "batch.size",
    }


def test_everything_else_librdkafka_has_is_accepted_in_one_warning() -> None:
    warning = _warned({"retries": 3, "max.in.flight": 1, "debug": "all", "compression.level": 3})

    assert warning.endswith(": compression.level, debug, max.in.flight, retries")


def test_null_counts_as_absent() -> None:
    assert translate({"acks": None, "ssl.ca.location": None}) == translate({})


def test_of_two_names_for_one_thing_the_first_in_the_table_wins_with_a_warning() -> None:
    config = {"queue.buffering.max.ms": 1, "linger.ms": 2}

    assert translate(config).linger_ms == 2.0
    assert _warned(config).endswith(
        "linger.ms and queue.buffering.max.ms set the same; queue.buffering.max.ms is ignored"
    )


def test_acks_1_turns_idempotence_off_with_a_warning() -> None:
    assert translate({"acks": "1"}).producer["enable_idempotence"] is False
    assert "idempotence is off" in _warned({"acks": 1})


def test_acks_1_contradicts_idempotence() -> None:
    assert "contradicts" in _problems({"acks": 1, "enable.idempotence": True})["acks"]


def test_idempotence_off_warns() -> None:
    assert "twice or out of order" in _warned({"enable.idempotence": "false"})


def test_ssl_files_are_handed_on_unread() -> None:
    config = {
        "security.protocol": "ssl",
        "ssl.ca.location": "ca",
        "ssl.certificate.location": "cert",
        "ssl.key.pem": "key",
        "ssl.key.password": "pw",
        "ssl.cipher.suites": "HIGH",
        "ssl.crl.location": "crl",
    }

    assert translate(config).ssl == SslFiles(
        ca_location="ca",
        certificate_location="cert",
        key_pem="key",
        key_password="pw",
        ciphers="HIGH",
        crl_location="crl",
    )


def test_probe_is_the_systems_own_certificates() -> None:
    assert translate({"security.protocol": "ssl", "ssl.ca.location": "probe"}).ssl == SslFiles()


def test_host_names_can_be_left_unchecked_with_a_warning() -> None:
    config = {"security.protocol": "ssl", "ssl.endpoint.identification.algorithm": "none"}

    assert translate(config).ssl == SslFiles(check_hostname=False)
    assert "name is not checked" in _warned(config)


def test_certificates_can_be_left_unverified_with_a_loud_warning() -> None:
    config = {"security.protocol": "ssl", "enable.ssl.certificate.verification": "false"}

    assert translate(config).ssl == SslFiles(check_hostname=False, verify=False)
    assert "ANYBODY" in _warned(config)


def test_a_certificate_needs_its_key_and_only_one_source() -> None:
    ssl = {"security.protocol": "ssl"}

    assert "needs ssl.key.location" in _problems(ssl | {"ssl.certificate.pem": "c"})["ssl.certificate.pem"]
    assert "needs ssl.certificate" in _problems(ssl | {"ssl.key.location": "k"})["ssl.key.location"]
    both = {"ssl.certificate.pem": "c", "ssl.certificate.location": "c", "ssl.key.location": "k"}
    assert "contradicts ssl.certificate.location" in _problems(ssl | both)["ssl.certificate.pem"]


def test_options_without_effect_are_named() -> None:
    assert _warned({"ssl.ca.location": "ca", "sasl.username": "u"}).endswith("ssl.ca.location, sasl.username")


def test_a_password_mechanism_needs_user_and_password() -> None:
    with pytest.raises(KafkaOptionsError) as refused:
        translate({"security.protocol": "SASL_PLAINTEXT", "sasl.mechanisms": "scram-sha-512"})

    assert refused.value.problems == [
        ("sasl.mechanisms", "SCRAM-SHA-512 needs sasl.username"),
        ("sasl.mechanisms", "SCRAM-SHA-512 needs sasl.password"),
    ]


def test_without_a_mechanism_it_is_librdkafkas_gssapi() -> None:
    assert translate({"security.protocol": "sasl_plaintext"}).producer["sasl_mechanism"] == "GSSAPI"


@pytest.mark.parametrize(
    ("options", "asked_by", "said"),
    [
        ({}, "security.protocol", "SASL without sasl.mechanism means GSSAPI, which needs the Python package gssapi"),
        ({"sasl.mechanism": "GSSAPI"}, "sasl.mechanism", "GSSAPI (Kerberos) needs the Python package gssapi"),
    ],
)
def test_kerberos_is_refused_where_its_package_is_not_installed(
    options: dict[str, str], asked_by: str, said: str
) -> None:
    options = {"security.protocol": "sasl_plaintext"} | options

    with pytest.raises(KafkaOptionsError) as refused:
        translate(options, gssapi_installed=False)

    assert refused.value.problems == [
        (asked_by, f"{said}, and it is not installed; install it, or set sasl.mechanism to SCRAM-SHA-512 or PLAIN")
    ]
    assert translate(options, gssapi_installed=True).producer["sasl_mechanism"] == "GSSAPI"
    translate(_SASL, gssapi_installed=False)


@pytest.mark.parametrize(
    "more",
    [
        {},
        {
            "sasl.oauthbearer.method": "OIDC",
            "sasl.oauthbearer.client.id": "c",
            "sasl.oauthbearer.client.secret": "hunter2",
            "sasl.oauthbearer.token.endpoint.url": "https://t",
        },
    ],
)
def test_oauthbearer_is_not_supported_yet_in_one_line(more: dict[str, str]) -> None:
    with pytest.raises(KafkaOptionsError) as refused:
        translate({"security.protocol": "sasl_ssl", "sasl.mechanism": "OAUTHBEARER"} | more)

    assert refused.value.problems == [
        ("sasl.mechanism", "OAUTHBEARER is not supported yet; use SCRAM-SHA-512 or PLAIN")
    ]


@pytest.mark.parametrize("key", ["bootstrap.servers", "metadata.broker.list"])
def test_servers_that_are_no_addresses_are_refused(key: str) -> None:
    assert "expected host:port" in _problems({key: "localhost:9092x"})[key]


def test_no_secret_shows_in_a_repr() -> None:
    config = _SASL | {"ssl.key.pem": "hunter2", "ssl.certificate.pem": "hunter2", "ssl.key.password": "hunter2"}

    assert "hunter2" not in repr(translate(config))


@given(st.dictionaries(st.sampled_from(sorted(PRODUCER_NAMES | CONSUMER_ONLY_NAMES)), st.just("hunter2"), max_size=8))
def test_no_message_shows_a_value(config: dict[str, str]) -> None:
    try:
        warnings = "".join(translate(config).warnings)
    except KafkaOptionsError as error:
        warnings = str(error)

    assert "hunter2" not in warnings
