"""librdkafka's configuration names, translated for aiokafka: the whole of `kafka.config`, by the table.

Messages name keys and what is expected, never a value: any value may be a secret.
"""

from __future__ import annotations

import difflib
import fnmatch
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from server.core.kafka_option_table import TABLE, Option, Refused
from server.core.librdkafka_names import CONSUMER_ONLY_NAMES, PRODUCER_NAMES

if TYPE_CHECKING:
    from collections.abc import Mapping

    from server.core.librdkafka_values import Scalar

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
class OAuthOptions:
    """Where tokens come from. `https` has the CAs to trust there, `extensions` are told to Kafka with each token."""

    endpoint: str
    client_id: str
    client_secret: str = field(repr=False)
    scope: str | None = None
    extensions: Mapping[str, str] = field(default_factory=dict)
    https: SslFiles = field(default_factory=SslFiles)


@dataclass(frozen=True, slots=True)
class KafkaOptions:
    """`kafka.config`, translated.

    `producer` has keyword arguments of AIOKafkaProducer that are plain data. `linger_ms` is None where not configured.
    `record_limit` is in bytes. `bootstrap_servers` is a comma-separated list, None where not configured.
    """

    producer: dict[str, Any] = field(repr=False)  # holds the SASL password
    bootstrap_servers: str | None = None
    ssl: SslFiles | None = None
    oauth: OAuthOptions | None = None
    linger_ms: float | None = None
    record_limit: int | None = None
    partitioner: str = DEFAULT_PARTITIONER
    warnings: tuple[str, ...] = ()


_PATTERNS = {name: row for name, row in TABLE.items() if "*" in name}
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
        row, effect = _row(key), effect_of(key)
        if isinstance(row, Refused):
            problems.append((key, row.reason))
        elif effect == "refused":
            problems.append((key, "is a consumer's option, and the forwarder only produces; remove it"))
        elif effect == "unknown":
            problems.append((key, "unknown option" + _did_you_mean(key)))
        elif effect == "ignored":
            ignored.append(key)
        elif value is not None:
            given[key] = value

    values, source = _read(given, problems, warnings)
    _check_acks(values, source, problems, warnings)
    ssl, oauth = _security(values, source, problems, warnings, gssapi_installed=gssapi_installed)
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
        oauth=oauth,
        linger_ms=values.get("linger_ms"),
        record_limit=values.get("record_limit"),
        partitioner=values.get("partitioner", DEFAULT_PARTITIONER),
        warnings=tuple(warnings),
    )


def effect_of(name: str) -> Literal["used", "refused", "ignored", "unknown"]:
    """What becomes of a name, whatever its value."""
    row = _row(name)
    if row is not None:
        return "used" if isinstance(row, Option) else "refused"
    if name in CONSUMER_ONLY_NAMES:
        return "refused"
    return "ignored" if name in PRODUCER_NAMES else "unknown"


def _row(key: str) -> Option | Refused | None:
    if key in TABLE:
        return TABLE[key]
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
    for key, row in TABLE.items():
        if key not in given or not isinstance(row, Option):
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
) -> tuple[SslFiles | None, OAuthOptions | None]:
    protocol = values.get("security_protocol", "PLAINTEXT")
    with_ssl, with_sasl = protocol.endswith("SSL"), protocol.startswith("SASL")
    unused = [
        key
        for key in source.values()
        if (key.startswith(("ssl.", "enable.ssl.")) and not with_ssl)
        or (key.startswith(("sasl.", "https.")) and not with_sasl)
    ]
    if unused:
        names = ", ".join(unused)
        warnings.append(f"kafka.config: without effect while security.protocol is {protocol.lower()}: {names}")
    if with_sasl:
        _sasl(values, source, problems, gssapi_installed=gssapi_installed)
        if protocol == "SASL_PLAINTEXT" and values["sasl_mechanism"] in {"PLAIN", "OAUTHBEARER"}:
            what = "password" if values["sasl_mechanism"] == "PLAIN" else "token"
            warnings.append(
                f"kafka.config: security.protocol is sasl_plaintext: ANYBODY ON THE WAY READS THE {what.upper()}; use "
                "sasl_ssl"
            )
    ssl = _ssl(values, source, problems, warnings) if with_ssl else None
    oauth = with_sasl and values["sasl_mechanism"] == "OAUTHBEARER"
    return ssl, _oauth(values, source, problems, warnings) if oauth else None


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
    elif mechanism == "GSSAPI" and not gssapi_installed:
        what = "GSSAPI (Kerberos)" if "sasl_mechanism" in source else "SASL without sasl.mechanism means GSSAPI, which"
        missing = "needs the Python package gssapi, and it is not installed"
        problems.append((asked_by, f"{what} {missing}; install it, or set sasl.mechanism to SCRAM-SHA-512 or PLAIN"))


def _oauth(
    values: dict[str, Any], source: dict[str, str], problems: list[tuple[str, str]], warnings: list[str]
) -> OAuthOptions | None:
    required = {
        "method": "sasl.oauthbearer.method: oidc",
        "endpoint": "sasl.oauthbearer.token.endpoint.url",
        "client_id": "sasl.oauthbearer.client.id",
        "client_secret": "sasl.oauthbearer.client.secret",
    }
    missing = [
        (source["sasl_mechanism"], f"OAUTHBEARER needs {name}")
        for part, name in required.items()
        if f"oauth:{part}" not in values
    ]
    if missing:
        problems.extend(missing)
        return None
    if values["oauth:endpoint"].startswith("http:"):
        warnings.append(
            f"kafka.config: {source['oauth:endpoint']} is not https: ANYBODY ON THE WAY READS THE CLIENT'S SECRET"
        )
    return OAuthOptions(
        endpoint=values["oauth:endpoint"],
        client_id=values["oauth:client_id"],
        client_secret=values["oauth:client_secret"],
        scope=values.get("oauth:scope"),
        extensions=values.get("oauth:extensions", {}),
        https=SslFiles(ca_location=values.get("https:ca_location"), ca_pem=values.get("https:ca_pem")),
    )
