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

from server.core.kafka_option_table import TABLE, Option
from server.core.kafka_options import KafkaOptionsError, OAuthOptions, SslFiles, effect_of, translate
from server.core.librdkafka_names import CONSUMER_ONLY_NAMES, PRODUCER_NAMES
from tests import librdkafka

if TYPE_CHECKING:
    from pathlib import Path

_LOGIN = {"sasl.mechanism": "PLAIN", "sasl.username": "u", "sasl.password": "hunter2"}
_SASL = {"security.protocol": "sasl_ssl", **_LOGIN}
_OAUTH = {
    "security.protocol": "sasl_ssl",
    "sasl.mechanism": "oauthbearer",
    "sasl.oauthbearer.method": "OIDC",
    "sasl.oauthbearer.token.endpoint.url": "https://t/token",
    "sasl.oauthbearer.client.id": "c",
    "sasl.oauthbearer.client.secret": "hunter2",
}


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
        ("sasl.oauthbearer.method", "default", "use oidc"),
        ("sasl.oauthbearer.method", "jwt", "one of oidc"),
        ("sasl.oauthbearer.grant.type", "urn:ietf:params:oauth:grant-type:jwt-bearer", "one of client_credentials"),
        ("sasl.oauthbearer.token.endpoint.url", "login.example.com/token", "expected a URL such as https://"),
        ("sasl.oauthbearer.token.endpoint.url", "https:///token", "expected a URL such as https://"),
        ("sasl.oauthbearer.token.endpoint.url", "https://host:port/token", "expected a URL such as https://"),
        ("sasl.oauthbearer.token.endpoint.url", "https://[/token", "expected a URL such as https://"),
        ("sasl.oauthbearer.token.endpoint.url", "https://u:p@host/token", "must not have credentials in it"),
        ("sasl.oauthbearer.extensions", "a=1,a=2", "each once"),
        ("sasl.oauthbearer.extensions", "a", "name=value"),
        ("sasl.oauthbearer.extensions", "auth=1", "name=value"),
        ("sasl.oauthbearer.extensions", "a=\x01", "name=value"),
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
        ("sasl.oauthbearer.assertion.file", "sasl.oauthbearer.client.id"),
        ("sasl.oauthbearer.assertion.private.key.pem", "sasl.oauthbearer.client.secret"),
        ("sasl.oauthbearer.metadata.authentication.type", "sasl.oauthbearer.client.id"),
        ("sasl.oauthbearer.config", "oidc"),
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


def test_tokens_come_from_an_endpoint_by_client_id_and_secret() -> None:
    options = translate(_OAUTH)

    assert options.producer["sasl_mechanism"] == "OAUTHBEARER"
    assert options.oauth == OAuthOptions("https://t/token", "c", "hunter2")
    assert options.warnings == ()
    assert translate({"security.protocol": "sasl_ssl", **_LOGIN}).oauth is None


def test_what_goes_along_with_tokens_is_optional() -> None:
    config = _OAUTH | {
        "sasl.oauthbearer.scope": "kafka write",
        "sasl.oauthbearer.extensions": "logicalCluster=lkc-1, identityPoolId=a=b",
        "sasl.oauthbearer.grant.type": "CLIENT_CREDENTIALS",
        "https.ca.location": "ca",
        "https.ca.pem": "pem",
    }

    assert translate(config).oauth == OAuthOptions(
        "https://t/token",
        "c",
        "hunter2",
        "kafka write",
        {"logicalCluster": "lkc-1", "identityPoolId": "a=b"},
        SslFiles(ca_location="ca", ca_pem="pem"),
    )


def test_what_tokens_need_is_named() -> None:
    with pytest.raises(KafkaOptionsError) as refused:
        translate({"security.protocol": "sasl_ssl", "sasl.mechanism": "OAUTHBEARER"})

    assert refused.value.problems == [
        ("sasl.mechanism", "OAUTHBEARER needs sasl.oauthbearer.method: oidc"),
        ("sasl.mechanism", "OAUTHBEARER needs sasl.oauthbearer.token.endpoint.url"),
        ("sasl.mechanism", "OAUTHBEARER needs sasl.oauthbearer.client.id"),
        ("sasl.mechanism", "OAUTHBEARER needs sasl.oauthbearer.client.secret"),
    ]


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (_OAUTH | {"sasl.oauthbearer.token.endpoint.url": "http://t/token"}, "THE CLIENT'S SECRET"),
        (_OAUTH | {"security.protocol": "sasl_plaintext"}, "THE TOKEN"),
        (_LOGIN | {"security.protocol": "sasl_plaintext"}, "THE PASSWORD"),
    ],
)
def test_a_secret_that_goes_over_the_network_in_the_clear_is_warned_of(config: dict[str, str], said: str) -> None:
    assert said in _warned(config)


def test_scram_keeps_the_password_to_itself() -> None:
    assert translate(_LOGIN | {"security.protocol": "sasl_plaintext", "sasl.mechanism": "SCRAM-SHA-256"}).warnings == ()


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


# --- every row of the project's list of names that must work ----------------------------------------------------------

_TLS = {"security.protocol": "ssl"}
_MUTUAL = _TLS | {"ssl.certificate.location": "c", "ssl.key.location": "k"}
# The name, a value, what else it needs, and where the value must arrive.
_ROWS: list[tuple[str, Any, dict[str, Any], str, Any]] = [
    ("bootstrap.servers", "a:1", {}, "bootstrap_servers", "a:1"),
    ("metadata.broker.list", "a:1", {}, "bootstrap_servers", "a:1"),
    ("client.id", "me", {}, "producer.client_id", "me"),
    ("security.protocol", "sSl", {}, "producer.security_protocol", "SSL"),
    ("ssl.ca.location", "p", _TLS, "ssl.ca_location", "p"),
    ("ssl.ca.pem", "p", _TLS, "ssl.ca_pem", "p"),
    ("ssl.certificate.location", "p", _MUTUAL, "ssl.certificate_location", "p"),
    ("ssl.certificate.pem", "p", _TLS | {"ssl.key.pem": "k"}, "ssl.certificate_pem", "p"),
    ("ssl.key.location", "p", _MUTUAL, "ssl.key_location", "p"),
    ("ssl.key.pem", "p", _TLS | {"ssl.certificate.pem": "c"}, "ssl.key_pem", "p"),
    ("ssl.key.password", "p", _MUTUAL, "ssl.key_password", "p"),
    ("ssl.cipher.suites", "HIGH", _TLS, "ssl.ciphers", "HIGH"),
    ("ssl.crl.location", "p", _TLS, "ssl.crl_location", "p"),
    ("ssl.endpoint.identification.algorithm", "none", _TLS, "ssl.check_hostname", False),
    ("ssl.endpoint.identification.algorithm", "https", _TLS, "ssl.check_hostname", True),
    ("enable.ssl.certificate.verification", "false", _TLS, "ssl.verify", False),
    *(
        (name, mechanism.lower(), _SASL, "producer.sasl_mechanism", mechanism)
        for name in ("sasl.mechanism", "sasl.mechanisms")
        for mechanism in ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "GSSAPI")
    ),
    ("sasl.mechanism", "OAUTHBEARER", _OAUTH, "producer.sasl_mechanism", "OAUTHBEARER"),
    ("sasl.username", "p", _SASL, "producer.sasl_plain_username", "p"),
    ("sasl.password", "p", _SASL, "producer.sasl_plain_password", "p"),
    ("sasl.kerberos.service.name", "p", _SASL, "producer.sasl_kerberos_service_name", "p"),
    ("sasl.oauthbearer.method", "oidc", _OAUTH, "oauth.endpoint", "https://t/token"),
    ("sasl.oauthbearer.token.endpoint.url", "https://p", _OAUTH, "oauth.endpoint", "https://p"),
    ("sasl.oauthbearer.client.id", "p", _OAUTH, "oauth.client_id", "p"),
    ("sasl.oauthbearer.client.credentials.client.id", "p", _OAUTH, "oauth.client_id", "p"),
    ("sasl.oauthbearer.client.secret", "p", _OAUTH, "oauth.client_secret", "p"),
    ("sasl.oauthbearer.client.credentials.client.secret", "p", _OAUTH, "oauth.client_secret", "p"),
    ("sasl.oauthbearer.scope", "p", _OAUTH, "oauth.scope", "p"),
    ("sasl.oauthbearer.extensions", "a=p", _OAUTH, "oauth.extensions", {"a": "p"}),
    ("sasl.oauthbearer.grant.type", "client_credentials", _OAUTH, "oauth.client_id", "c"),
    ("https.ca.location", "p", _OAUTH, "oauth.https.ca_location", "p"),
    ("https.ca.pem", "p", _OAUTH, "oauth.https.ca_pem", "p"),
    *(
        (name, codec, {}, "producer.compression_type", None if codec == "none" else codec)
        for name in ("compression.type", "compression.codec")
        for codec in ("none", "gzip", "snappy", "lz4", "zstd")
    ),
    ("linger.ms", 5, {}, "linger_ms", 5.0),
    ("queue.buffering.max.ms", 5, {}, "linger_ms", 5.0),
    ("batch.size", 1000, {}, "producer.max_batch_size", 1000),
    ("message.max.bytes", 2000, {}, "record_limit", 2000),
    ("acks", "all", {}, "producer.acks", -1),
    ("acks", 1, {}, "producer.enable_idempotence", False),
    ("request.required.acks", "-1", {}, "producer.acks", -1),
    ("enable.idempotence", "false", {}, "producer.enable_idempotence", False),
    ("request.timeout.ms", 5000, {}, "producer.request_timeout_ms", 5000),
    ("socket.timeout.ms", 5000, {}, "producer.request_timeout_ms", 5000),
    ("retry.backoff.ms", 50, {}, "producer.retry_backoff_ms", 50),
    ("metadata.max.age.ms", 5000, {}, "producer.metadata_max_age_ms", 5000),
    ("topic.metadata.refresh.interval.ms", 5000, {}, "producer.metadata_max_age_ms", 5000),
    ("connections.max.idle.ms", 0, {}, "producer.connections_max_idle_ms", None),
    ("partitioner", "murmur2_random", {}, "partitioner", "murmur2_random"),
    ("partitioner", "consistent_random", {}, "partitioner", "consistent_random"),
    ("partitioner", "fnv1a_random", {}, "partitioner", "fnv1a_random"),
]


@pytest.mark.parametrize(("name", "value", "besides", "where", "expected"), _ROWS)
def test_every_name_that_must_work_arrives_where_it_should(
    name: str, value: Any, besides: dict[str, Any], where: str, expected: Any
) -> None:
    # An alias takes the place of the name it stands for.
    row = TABLE[name]
    assert isinstance(row, Option)
    config = {key: known for key, known in besides.items() if getattr(TABLE[key], "target", "") != row.target}
    found: Any = translate(config | {name: value})
    for part in where.split("."):
        found = found[part] if isinstance(found, dict) else getattr(found, part)

    assert found == expected


def test_no_name_that_works_is_missing_there() -> None:
    assert {row[0] for row in _ROWS} == {name for name, row in TABLE.items() if isinstance(row, Option)}


@pytest.mark.parametrize(
    "name",
    [
        "retries",
        "message.timeout.ms",
        "max.in.flight",
        "max.in.flight.requests.per.connection",
        "queue.buffering.max.messages",
        "socket.keepalive.enable",
        "batch.num.messages",
        "compression.level",
        "reconnect.backoff.ms",
        "reconnect.backoff.max.ms",
        "debug",
    ],
)
def test_names_of_the_list_that_have_no_effect_are_accepted(name: str) -> None:
    assert effect_of(name) == "ignored"
    assert name in _warned({name: "x"})


@pytest.mark.parametrize(
    ("name", "effect"),
    [
        ("linger.ms", "used"),
        ("group.id", "refused"),
        ("ssl.keystore.location", "refused"),
        ("retries", "ignored"),
        ("lingr.ms", "unknown"),
    ],
)
def test_what_becomes_of_a_name_is_known_without_its_value(name: str, effect: str) -> None:
    assert effect_of(name) == effect
