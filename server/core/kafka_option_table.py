"""The table of `kafka.config`: what becomes of each of librdkafka's names here.

The code translates by it, and docs/kafka-options.md is made of it (`make docs`).
"""

from __future__ import annotations

from dataclasses import dataclass

from server.core.librdkafka_values import (
    INT32,
    Reader,
    acks,
    ca_location,
    choice,
    compression,
    extensions,
    filled,
    flag,
    idle_ms,
    milliseconds,
    oauth_method,
    partitioner,
    refresh_ms,
    servers,
    text,
    token_endpoint,
    whole,
)


@dataclass(frozen=True, slots=True)
class Option:
    """A name that is translated: `target` is the one thing it sets, shared by aliases; the rest is for the reader."""

    target: str
    read: Reader
    values: str
    means: str


@dataclass(frozen=True, slots=True)
class Refused:
    """A name that can't work: why, and what to use instead."""

    reason: str


_KEYSTORE = Refused("key stores are not supported; use ssl.certificate.location and ssl.key.location (PEM)")
_TRUSTSTORE = Refused("Java trust stores are not supported; use ssl.ca.location (PEM)")
_KEYTAB = Refused("the process uses the ticket cache it finds; run kinit and set KRB5CCNAME or KRB5_CLIENT_KTNAME")
_CLIENT_CREDENTIALS = "use sasl.oauthbearer.client.id and sasl.oauthbearer.client.secret"

_SERVERS = Option(
    "bootstrap_servers", servers, "host:port, ...", "where to begin; wins over kafka.bootstrap_server and port"
)
_PATH, _PEM = "path", "PEM text"
_MECHANISM = Option(
    "sasl_mechanism",
    choice("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "GSSAPI", "OAUTHBEARER"),
    "PLAIN, SCRAM-SHA-256, SCRAM-SHA-512, GSSAPI, OAUTHBEARER",
    "how to log in; GSSAPI, which is the default, needs the Python package gssapi",
)
_CLIENT_ID = Option("oauth:client_id", filled, "text", "the client id for the token endpoint")
_CLIENT_SECRET = Option("oauth:client_secret", text, "text", "its secret; sent to the token endpoint only")
_COMPRESSION = Option(
    "compression_type", compression, "none, gzip, snappy, lz4, zstd", "the codec of batches; none by default"
)
_LINGER = Option(
    "linger_ms", milliseconds, "0 to 900000", "how long to gather, in ms; by default 6, and more while CPU is short"
)
_ACKS = Option("acks", acks, "all, -1, 1", "all (-1) by default; 1 turns idempotence off, with a warning; 0 is refused")
_TIMEOUT = "how long a request may take, in ms; 40000 by default"
_REFRESH = "how often to look for new partitions, in ms; 300000 by default"

# One row per name; the first of two names with one target wins. A name with `*` is a pattern; exact rows win over it.
TABLE: dict[str, Option | Refused] = {
    "bootstrap.servers": _SERVERS,
    "metadata.broker.list": _SERVERS,
    "client.id": Option("client_id", filled, "text", "the name this client has in Kafka's logs and quotas"),
    "security.protocol": Option(
        "security_protocol",
        choice("PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"),
        "plaintext, ssl, sasl_plaintext, sasl_ssl",
        "whether to use TLS, and whether to log in; plaintext by default",
    ),
    "ssl.ca.location": Option(
        "ssl:ca_location",
        ca_location,
        "path, probe",
        "the CAs to trust: a file, or a folder with hashed names; those of the system by default",
    ),
    "ssl.ca.pem": Option("ssl:ca_pem", filled, _PEM, "the same as text"),
    "ssl.certificate.location": Option("ssl:certificate_location", filled, _PATH, "the client's certificate (chain)"),
    "ssl.certificate.pem": Option("ssl:certificate_pem", filled, _PEM, "the same as text"),
    "ssl.key.location": Option("ssl:key_location", filled, _PATH, "the key of that certificate"),
    "ssl.key.pem": Option("ssl:key_pem", filled, _PEM, "the same as text"),
    "ssl.key.password": Option("ssl:key_password", text, "text", "what the key is encrypted with"),
    "ssl.cipher.suites": Option("ssl:ciphers", filled, "OpenSSL's cipher list", "the ciphers to offer up to TLS 1.2"),
    "ssl.crl.location": Option("ssl:crl_location", filled, _PATH, "revoked certificates, as a PEM file"),
    "ssl.endpoint.identification.algorithm": Option(
        "endpoint_identification",
        choice("https", "none"),
        "https, none",
        "none: the broker's name is not checked, with a warning",
    ),
    "enable.ssl.certificate.verification": Option(
        "ssl:verify", flag, "true, false", "false: the broker's certificate is not checked, with a loud warning"
    ),
    "sasl.mechanism": _MECHANISM,
    "sasl.mechanisms": _MECHANISM,
    "sasl.username": Option("sasl_plain_username", text, "text", "the user of PLAIN and SCRAM"),
    "sasl.password": Option("sasl_plain_password", text, "text", "that user's password"),
    "sasl.kerberos.service.name": Option(
        "sasl_kerberos_service_name", filled, "text", "the name Kafka has in Kerberos; kafka by default"
    ),
    "sasl.oauthbearer.method": Option(
        "oauth:method", oauth_method, "oidc", "tokens come from a token endpoint, by client id and secret"
    ),
    "sasl.oauthbearer.token.endpoint.url": Option(
        "oauth:endpoint", token_endpoint, "https://...", "the token endpoint"
    ),
    "sasl.oauthbearer.client.id": _CLIENT_ID,
    "sasl.oauthbearer.client.credentials.client.id": _CLIENT_ID,
    "sasl.oauthbearer.client.secret": _CLIENT_SECRET,
    "sasl.oauthbearer.client.credentials.client.secret": _CLIENT_SECRET,
    "sasl.oauthbearer.scope": Option("oauth:scope", filled, "text", "the scope to ask for"),
    "sasl.oauthbearer.extensions": Option(
        "oauth:extensions",
        extensions,
        "name=value,...",
        "what Kafka is told besides the token, such as logicalCluster and identityPoolId for Confluent Cloud",
    ),
    "sasl.oauthbearer.grant.type": Option(
        "oauth:grant_type", choice("client_credentials"), "client_credentials", "the only grant there is here"
    ),
    "https.ca.location": Option(
        "https:ca_location",
        ca_location,
        "path, probe",
        "the CAs to trust for the token endpoint; those of the system by default",
    ),
    "https.ca.pem": Option("https:ca_pem", filled, _PEM, "the same as text"),
    "compression.type": _COMPRESSION,
    "compression.codec": _COMPRESSION,
    "linger.ms": _LINGER,
    "queue.buffering.max.ms": _LINGER,
    "batch.size": Option(
        "max_batch_size", whole(1, INT32), "1 to 2147483647", "the most bytes of a batch; 1000000 by default"
    ),
    "message.max.bytes": Option(
        "record_limit",
        whole(1000, 1_000_000_000),
        "1000 to 1000000000",
        "larger records are poison; by default the limit is learnt from Kafka",
    ),
    "acks": _ACKS,
    "request.required.acks": _ACKS,
    "enable.idempotence": Option(
        "enable_idempotence",
        flag,
        "true, false",
        "false: Kafka may store a message twice or out of order, with a warning",
    ),
    "request.timeout.ms": Option("request_timeout_ms", whole(1, 900_000), "1 to 900000", _TIMEOUT),
    "socket.timeout.ms": Option("request_timeout_ms", whole(10, 300_000), "10 to 300000", _TIMEOUT),
    "retry.backoff.ms": Option(
        "retry_backoff_ms",
        whole(1, 300_000),
        "1 to 300000",
        "how long the client waits before it tries again, in ms; 100 by default, more where there are many mappings",
    ),
    "metadata.max.age.ms": Option("metadata_max_age_ms", whole(1, 86_400_000), "1 to 86400000", _REFRESH),
    "topic.metadata.refresh.interval.ms": Option(
        "metadata_max_age_ms", refresh_ms, "-1 to 3600000", f"{_REFRESH}; 0 and -1 are once a day"
    ),
    "connections.max.idle.ms": Option(
        "connections_max_idle_ms", idle_ms, "0 to 2147483647", "when an idle connection is closed, in ms; 0: never"
    ),
    "partitioner": Option(
        "partitioner",
        partitioner,
        "murmur2_random, murmur2, consistent_random, consistent, fnv1a_random, fnv1a",
        "which partition a key goes to; murmur2_random, as in Java, by default. random is refused",
    ),
    "ssl.keystore.*": _KEYSTORE,
    "ssl.truststore.*": _TRUSTSTORE,
    "ssl.engine.*": Refused("OpenSSL engines are not supported; use ssl.key.location (PEM)"),
    "sasl.jaas.config": Refused("is Java's; use sasl.mechanism, sasl.username and sasl.password"),
    "sasl.kerberos.keytab": _KEYTAB,
    "sasl.kerberos.principal": _KEYTAB,
    "sasl.oauthbearer.assertion.*": Refused(f"signed assertions are not supported; {_CLIENT_CREDENTIALS}"),
    "sasl.oauthbearer.metadata.authentication.type": Refused(
        f"identities of the cloud's machines are not supported; {_CLIENT_CREDENTIALS}"
    ),
    "sasl.oauthbearer.config": Refused(
        "tokens that nobody signed are not supported; use sasl.oauthbearer.method: oidc"
    ),
    "transactional.id": Refused("transactions are not supported; enable.idempotence is on by default"),
    "plugin.library.paths": Refused("librdkafka's plugins can't be loaded: this service does not use librdkafka"),
    "*_cb": Refused("callbacks can't be configured; remove it"),
}
