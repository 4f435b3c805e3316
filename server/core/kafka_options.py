"""librdkafka's configuration names, translated for aiokafka: the whole of `kafka.config`, as one table.

Messages name keys and what is expected, never a value: any value may be a secret.
"""

from __future__ import annotations

import difflib
import fnmatch
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from server.core.librdkafka_names import CONSUMER_ONLY_NAMES, PRODUCER_NAMES
from server.core.librdkafka_values import (
    INT32,
    Reader,
    Scalar,
    acks,
    ca_location,
    choice,
    compression,
    filled,
    flag,
    idle_ms,
    milliseconds,
    partitioner,
    refresh_ms,
    servers,
    text,
    whole,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

DEFAULT_MAX_BATCH_SIZE = 1_000_000  # librdkafka's; a broker's default limit of 1,048,588 B leaves room for headers
DEFAULT_PARTITIONER = "murmur2_random"
_MECHANISMS_WITH_PASSWORD = {"PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"}


class KafkaOptionsError(ValueError):
    """`kafka.config` can't be used; `problems` has every (key, message), and no value."""

    def __init__(self, problems: list[tuple[str, str]]) -> None:
        super().__init__("\n".join(f"{key}: {message}" for key, message in problems))
        self.problems = problems


@dataclass(frozen=True, slots=True)
class SslFiles:
    """What the adapter makes the SSL context from; paths are as configured, unread. PEM fields hold the text itself."""

    ca_location: str | None = None
    ca_pem: str | None = field(default=None, repr=False)
    certificate_location: str | None = None
    certificate_pem: str | None = field(default=None, repr=False)
    key_location: str | None = None
    key_pem: str | None = field(default=None, repr=False)
    key_password: str | None = field(default=None, repr=False)
    ciphers: str | None = None
    crl_location: str | None = None
    check_hostname: bool = True
    verify: bool = True


@dataclass(frozen=True, slots=True)
class KafkaOptions:
    """`kafka.config`, translated.

    `producer` has keyword arguments of AIOKafkaProducer that are plain data. `linger_ms` is None where not configured.
    `record_limit` is in bytes. `bootstrap_servers` is a comma-separated list, None where not configured.
    """

    producer: dict[str, Any] = field(repr=False)  # holds the SASL password
    bootstrap_servers: str | None = None
    ssl: SslFiles | None = None
    linger_ms: float | None = None
    record_limit: int | None = None
    partitioner: str = DEFAULT_PARTITIONER
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Option:
    """A name that is translated: `target` is the one thing it sets, shared by aliases."""

    target: str
    read: Reader


@dataclass(frozen=True, slots=True)
class _Refused:
    reason: str


_NO_KEYSTORE = _Refused("key stores are not supported; use ssl.certificate.location and ssl.key.location (PEM)")
_NO_TRUSTSTORE = _Refused("Java trust stores are not supported; use ssl.ca.location (PEM)")
_NO_KEYTAB = _Refused("the process uses the ticket cache it finds; run kinit and set KRB5CCNAME or KRB5_CLIENT_KTNAME")

# One row per name; the first of two names with one target wins. A name with `*` is a pattern; exact rows win over it.
_TABLE: dict[str, _Option | _Refused] = {
    "bootstrap.servers": _Option("bootstrap_servers", servers),
    "metadata.broker.list": _Option("bootstrap_servers", servers),
    "client.id": _Option("client_id", filled),
    "security.protocol": _Option("security_protocol", choice("PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL")),
    "ssl.ca.location": _Option("ssl:ca_location", ca_location),
    "ssl.ca.pem": _Option("ssl:ca_pem", filled),
    "ssl.certificate.location": _Option("ssl:certificate_location", filled),
    "ssl.certificate.pem": _Option("ssl:certificate_pem", filled),
    "ssl.key.location": _Option("ssl:key_location", filled),
    "ssl.key.pem": _Option("ssl:key_pem", filled),
    "ssl.key.password": _Option("ssl:key_password", text),
    "ssl.cipher.suites": _Option("ssl:ciphers", filled),
    "ssl.crl.location": _Option("ssl:crl_location", filled),
    "ssl.endpoint.identification.algorithm": _Option("endpoint_identification", choice("https", "none")),
    "enable.ssl.certificate.verification": _Option("ssl:verify", flag),
    "sasl.mechanism": _Option(
        "sasl_mechanism", choice("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "GSSAPI", "OAUTHBEARER")
    ),
    "sasl.mechanisms": _Option(
        "sasl_mechanism", choice("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "GSSAPI", "OAUTHBEARER")
    ),
    "sasl.username": _Option("sasl_plain_username", text),
    "sasl.password": _Option("sasl_plain_password", text),
    "sasl.kerberos.service.name": _Option("sasl_kerberos_service_name", filled),
    "compression.type": _Option("compression_type", compression),
    "compression.codec": _Option("compression_type", compression),
    "linger.ms": _Option("linger_ms", milliseconds),
    "queue.buffering.max.ms": _Option("linger_ms", milliseconds),
    "batch.size": _Option("max_batch_size", whole(1, INT32)),
    "message.max.bytes": _Option("record_limit", whole(1000, 1_000_000_000)),
    "acks": _Option("acks", acks),
    "request.required.acks": _Option("acks", acks),
    "enable.idempotence": _Option("enable_idempotence", flag),
    "request.timeout.ms": _Option("request_timeout_ms", whole(1, 900_000)),
    "socket.timeout.ms": _Option("request_timeout_ms", whole(10, 300_000)),
    "retry.backoff.ms": _Option("retry_backoff_ms", whole(1, 300_000)),
    "metadata.max.age.ms": _Option("metadata_max_age_ms", whole(1, 86_400_000)),
    "topic.metadata.refresh.interval.ms": _Option("metadata_max_age_ms", refresh_ms),
    "connections.max.idle.ms": _Option("connections_max_idle_ms", idle_ms),
    "partitioner": _Option("partitioner", partitioner),
    "ssl.keystore.*": _NO_KEYSTORE,
    "ssl.truststore.*": _NO_TRUSTSTORE,
    "ssl.engine.*": _Refused("OpenSSL engines are not supported; use ssl.key.location (PEM)"),
    "sasl.jaas.config": _Refused("is Java's; use sasl.mechanism, sasl.username and sasl.password"),
    "sasl.kerberos.keytab": _NO_KEYTAB,
    "sasl.kerberos.principal": _NO_KEYTAB,
    "transactional.id": _Refused("transactions are not supported; enable.idempotence is on by default"),
    "plugin.library.paths": _Refused("librdkafka's plugins can't be loaded: this service does not use librdkafka"),
    "*_cb": _Refused("callbacks can't be configured; remove it"),
}
_PATTERNS = {name: row for name, row in _TABLE.items() if "*" in name}
_NOT_PRODUCER_ARGUMENTS = {"bootstrap_servers", "linger_ms", "record_limit", "partitioner", "endpoint_identification"}


def translate(config: Mapping[str, Scalar], *, gssapi_installed: bool = True) -> KafkaOptions:
    """Translate `kafka.config`; a null value counts as absent. Without the package gssapi Kerberos is refused.

    Raises:
        KafkaOptionsError: names that are refused or unknown, values out of range, options that contradict each other.
    """
    problems: list[tuple[str, str]] = []
    warnings: list[str] = []
    ignored: list[str] = []
    given: dict[str, Scalar] = {}
    for key, value in config.items():
        row = _row(key)
        if isinstance(row, _Refused):
            problems.append((key, row.reason))
        elif row is None and key in CONSUMER_ONLY_NAMES:
            problems.append((key, "is a consumer's option, and the forwarder only produces; remove it"))
        elif row is None and key not in PRODUCER_NAMES:
            problems.append((key, "unknown option" + _did_you_mean(key)))
        elif row is None:
            ignored.append(key)
        elif value is not None:
            given[key] = value

    values, source = _read(given, problems, warnings)
    _check_acks(values, source, problems, warnings)
    ssl = _security(values, source, problems, warnings, gssapi_installed=gssapi_installed)
    if problems:
        raise KafkaOptionsError(problems)
    if ignored:
        warnings.append(
            "kafka.config: accepted but without effect, because the forwarder never gives up and bounds memory "
            "itself: " + ", ".join(sorted(ignored))
        )
    defaults = {"acks": -1, "enable_idempotence": values.get("acks") != 1, "max_batch_size": DEFAULT_MAX_BATCH_SIZE}
    plain = {k: v for k, v in values.items() if ":" not in k and k not in _NOT_PRODUCER_ARGUMENTS}
    return KafkaOptions(
        producer=defaults | plain,
        bootstrap_servers=values.get("bootstrap_servers"),
        ssl=ssl,
        linger_ms=values.get("linger_ms"),
        record_limit=values.get("record_limit"),
        partitioner=values.get("partitioner", DEFAULT_PARTITIONER),
        warnings=tuple(warnings),
    )


def _row(key: str) -> _Option | _Refused | None:
    if key in _TABLE:
        return _TABLE[key]
    return next((row for pattern, row in _PATTERNS.items() if fnmatch.fnmatchcase(key, pattern)), None)


def _did_you_mean(key: str) -> str:
    known = sorted(PRODUCER_NAMES)
    close = difflib.get_close_matches(key.lower().replace("_", "."), known, n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def _read(
    given: dict[str, Scalar], problems: list[tuple[str, str]], warnings: list[str]
) -> tuple[dict[str, Any], dict[str, str]]:
    """Read the value of each target and the key it came from, in the order of the table."""
    values: dict[str, Any] = {}
    source: dict[str, str] = {}
    for key, row in _TABLE.items():
        if key not in given or not isinstance(row, _Option):
            continue
        try:
            value = row.read(given[key])
        except ValueError as error:
            problems.append((key, str(error)))
            continue
        if row.target in values:
            warnings.append(f"kafka.config: {source[row.target]} and {key} set the same; {key} is ignored")
            continue
        values[row.target] = value
        source[row.target] = key
    return values, source


def _check_acks(
    values: dict[str, Any], source: dict[str, str], problems: list[tuple[str, str]], warnings: list[str]
) -> None:
    if values.get("acks") == 1:
        if values.get("enable_idempotence"):
            problems.append((source["acks"], "1 contradicts enable.idempotence, which needs all"))
        warnings.append(
            f"kafka.config: {source['acks']} = 1: idempotence is off, and a message that Kafka confirmed can be lost "
            "when a partition's leader fails"
        )
    elif values.get("enable_idempotence") is False:
        warnings.append("kafka.config: enable.idempotence is off: Kafka may store a message twice or out of order")


def _security(
    values: dict[str, Any],
    source: dict[str, str],
    problems: list[tuple[str, str]],
    warnings: list[str],
    *,
    gssapi_installed: bool,
) -> SslFiles | None:
    protocol = values.get("security_protocol", "PLAINTEXT")
    with_ssl, with_sasl = protocol.endswith("SSL"), protocol.startswith("SASL")
    unused = [
        key
        for key in source.values()
        if (key.startswith(("ssl.", "enable.ssl.")) and not with_ssl) or (key.startswith("sasl.") and not with_sasl)
    ]
    if unused:
        names = ", ".join(unused)
        warnings.append(f"kafka.config: without effect while security.protocol is {protocol.lower()}: {names}")
    if with_sasl:
        _sasl(values, source, problems, gssapi_installed=gssapi_installed)
    return _ssl(values, source, problems, warnings) if with_ssl else None


def _ssl(
    values: dict[str, Any], source: dict[str, str], problems: list[tuple[str, str]], warnings: list[str]
) -> SslFiles:
    fields = {target.removeprefix("ssl:"): value for target, value in values.items() if target.startswith("ssl:")}
    check_hostname = values.get("endpoint_identification") != "none"
    if fields.get("verify") is False:
        warnings.append(
            "kafka.config: enable.ssl.certificate.verification is off: ANYBODY CAN POSE AS THE BROKER, read what is "
            "sent and learn the password"
        )
        check_hostname = False  # OpenSSL can't check the name of a certificate it does not verify
    elif not check_hostname:
        warnings.append("kafka.config: ssl.endpoint.identification.algorithm is none: the broker's name is not checked")
    for part, other in (("certificate", "key"), ("key", "certificate")):
        chosen = [source[f"ssl:{part}_{form}"] for form in ("location", "pem") if f"ssl:{part}_{form}" in source]
        if len(chosen) > 1:
            problems.append((chosen[1], f"contradicts {chosen[0]}; set one of them"))
        if chosen and not any(f"ssl:{other}_{form}" in source for form in ("location", "pem")):
            problems.append((chosen[0], f"needs ssl.{other}.location or ssl.{other}.pem as well"))
    return SslFiles(**fields | {"check_hostname": check_hostname})


def _sasl(
    values: dict[str, Any], source: dict[str, str], problems: list[tuple[str, str]], *, gssapi_installed: bool
) -> None:
    mechanism = values.setdefault("sasl_mechanism", "GSSAPI")  # librdkafka's default; aiokafka's is PLAIN
    asked_by = source.get("sasl_mechanism", "security.protocol")
    if mechanism in _MECHANISMS_WITH_PASSWORD:
        problems.extend(
            (asked_by, f"{mechanism} needs {key}")
            for key, target in (("sasl.username", "sasl_plain_username"), ("sasl.password", "sasl_plain_password"))
            if target not in values
        )
    elif mechanism == "OAUTHBEARER":
        problems.append((asked_by, "OAUTHBEARER is not supported yet; use SCRAM-SHA-512 or PLAIN"))
    elif not gssapi_installed:
        what = "GSSAPI (Kerberos)" if "sasl_mechanism" in source else "SASL without sasl.mechanism means GSSAPI, which"
        missing = "needs the Python package gssapi, and it is not installed"
        problems.append((asked_by, f"{what} {missing}; install it, or set sasl.mechanism to SCRAM-SHA-512 or PLAIN"))
