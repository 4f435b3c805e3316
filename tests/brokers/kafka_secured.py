"""A real Kafka as platform teams run it: TLS, mutual TLS, SASL and ACLs, each on a listener of its own."""

from __future__ import annotations

import base64
import json
import ssl
import time
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import trustme
from confluent_kafka.admin import (
    AclBinding,
    AclBindingFilter,
    AclOperation,
    AclPermissionType,
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    ResourcePatternType,
    ResourceType,
    ScramCredentialInfo,
    ScramMechanism,
    UserScramCredentialDeletion,
    UserScramCredentialUpsertion,
)
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from tests.brokers.kafka import Kafka
from tests.brokers.process import free_port, wait_until

if TYPE_CHECKING:
    from pathlib import Path

ADMIN_TIMEOUT = 20.0
PLAIN_USER, PLAIN_PASSWORD = "plain-user", "plain-password-hunter2"
AUDIENCE = "kafka"
# After so long (ms) the listener SASL closes connections whose client has not authenticated anew; aiokafka's never do.
SESSION_MS = 2_000
_SASL = "org.apache.kafka.common.security"
_SCRAM = {"SCRAM-SHA-256": ScramMechanism.SCRAM_SHA_256, "SCRAM-SHA-512": ScramMechanism.SCRAM_SHA_512}


@dataclass(frozen=True, slots=True)
class ClientFiles:
    """PEM files of a client: its certificate and its key."""

    certificate: Path
    key: Path


class SecuredKafka(Kafka):
    """A Kafka with an authorizer and the listeners PLAINTEXT, TLS, MUTUAL, SASL_TLS, SASL and OLD.

    PLAINTEXT is the tests' own, for what they set up: its nameless clients may do everything, and so may those of TLS.
    MUTUAL wants a client's certificate, whose common name is the user's. SASL_TLS offers PLAIN, SCRAM and OAUTHBEARER,
    SASL the same but tokens, in clear text and with sessions that end after SESSION_MS for SCRAM-SHA-512. OLD offers
    only PLAIN, and knows nobody. Nobody else may do anything without an ACL.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.authority = trustme.CA()
        self.ca = folder / "ca.pem"
        self.authority.cert_pem.write_to_path(self.ca)
        self._signing = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        broker, controller = free_port(), free_port()
        self._listeners = {name: free_port() for name in ("TLS", "MUTUAL", "SASL_TLS", "SASL", "OLD")}
        super().__init__(
            folder,
            config=self._settings(folder, broker, controller),
            ports=(broker, controller),
            heap="320m",
            java_options=(
                "-XX:TieredStopAtLevel=1",  # it is up sooner, and nobody measures it
                f"-Dorg.apache.kafka.sasl.oauthbearer.allowed.urls={(folder / 'jwks.json').as_uri()}",
            ),
        )

    def _settings(self, folder: Path, broker: int, controller: int) -> dict[str, str]:
        (folder / "jwks.json").write_text(json.dumps({"keys": [self._public_key()]}))
        self._issue(folder / "server.pem")
        listeners = {"PLAINTEXT": broker, **self._listeners}
        advertised = ",".join(f"{name}://127.0.0.1:{port}" for name, port in listeners.items())
        scram = f"{_SASL}.scram.ScramLoginModule required;"
        return {
            "listeners": f"{advertised},CONTROLLER://127.0.0.1:{controller}",
            "advertised.listeners": advertised,
            "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,TLS:SSL,MUTUAL:SSL,"
            "SASL_TLS:SASL_SSL,SASL:SASL_PLAINTEXT,OLD:SASL_PLAINTEXT",
            "num.network.threads": "1",  # each has its certificates from its own time on
            "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
            "allow.everyone.if.no.acl.found": "false",
            "super.users": "User:ANONYMOUS",
            "ssl.keystore.type": "PEM",
            "ssl.keystore.location": str(folder / "server.pem"),
            "ssl.truststore.type": "PEM",
            "ssl.truststore.location": str(self.ca),
            "ssl.allow.dn.changes": "true",
            "ssl.allow.san.changes": "true",
            "ssl.principal.mapping.rules": "RULE:^.*CN=([^,]+).*$/$1/",
            "listener.name.tls.ssl.client.auth": "none",
            "listener.name.mutual.ssl.client.auth": "required",
            "listener.name.sasl_tls.sasl.enabled.mechanisms": "PLAIN,SCRAM-SHA-256,SCRAM-SHA-512,OAUTHBEARER",
            "listener.name.sasl_tls.plain.sasl.jaas.config": _plain({PLAIN_USER: PLAIN_PASSWORD}),
            "listener.name.sasl_tls.scram-sha-256.sasl.jaas.config": scram,
            "listener.name.sasl_tls.scram-sha-512.sasl.jaas.config": scram,
            "listener.name.sasl_tls.oauthbearer.sasl.jaas.config": f"{_SASL}.oauthbearer.OAuthBearerLoginModule "
            "required;",
            "listener.name.sasl_tls.oauthbearer.sasl.server.callback.handler.class": f"{_SASL}.oauthbearer."
            "OAuthBearerValidatorCallbackHandler",
            "sasl.oauthbearer.jwks.endpoint.url": (folder / "jwks.json").as_uri(),
            "sasl.oauthbearer.jwt.validator.class": f"{_SASL}.oauthbearer.BrokerJwtValidator",  # not by default
            "sasl.oauthbearer.expected.audience": AUDIENCE,
            # Connections end with their tokens.
            "listener.name.sasl_tls.oauthbearer.connections.max.reauth.ms": "3600000",
            "listener.name.sasl.sasl.enabled.mechanisms": "PLAIN,SCRAM-SHA-256,SCRAM-SHA-512",
            "listener.name.sasl.plain.sasl.jaas.config": _plain({PLAIN_USER: PLAIN_PASSWORD}),
            "listener.name.sasl.scram-sha-256.sasl.jaas.config": scram,
            "listener.name.sasl.scram-sha-512.sasl.jaas.config": scram,
            "listener.name.sasl.scram-sha-512.connections.max.reauth.ms": str(SESSION_MS),
            "listener.name.old.sasl.enabled.mechanisms": "PLAIN",
            "listener.name.old.plain.sasl.jaas.config": _plain({"nobody": "hunter2"}),
        }

    def address(self, listener: str) -> str:
        """`host:port` of a listener."""
        return f"127.0.0.1:{self._listeners[listener]}" if listener in self._listeners else self.bootstrap

    # --- certificates -----------------------------------------------------------------------------------------------

    def present(
        self, *names: str, authority: trustme.CA | None = None, days: float = 1.0, listener: str = "TLS"
    ) -> None:
        """Let a listener show another certificate: by default one for 127.0.0.1 that is valid for a day."""
        keystore = self.folder / f"server-{uuid.uuid4()}.pem"
        certificate = self._issue(keystore, *names, authority=authority, days=days)
        name = f"listener.name.{listener.lower()}.ssl.keystore"
        self.alter({f"{name}.location": str(keystore), f"{name}.type": "PEM"})
        host, _, port = self.address(listener).rpartition(":")
        wait_until(
            lambda: ssl.get_server_certificate((host, int(port))).strip() == certificate.strip(),
            timeout=ADMIN_TIMEOUT,
            what=f"{listener} shows its new certificate",
        )

    def _issue(self, keystore: Path, *names: str, authority: trustme.CA | None = None, days: float = 1.0) -> str:
        now = datetime.now(UTC)
        issued = (authority or self.authority).issue_cert(
            *(names or ("127.0.0.1",)), not_before=now - timedelta(days=3), not_after=now + timedelta(days=days)
        )
        chain = b"".join(blob.bytes() for blob in issued.cert_chain_pems)
        keystore.write_bytes(_pkcs8(issued.private_key_pem.bytes()) + chain)
        return issued.cert_chain_pems[0].bytes().decode()

    def client_files(
        self, folder: Path, user: str, *, authority: trustme.CA | None = None, days: float = 1.0
    ) -> ClientFiles:
        """Write a client's certificate and key; the user's name is its common name."""
        now = datetime.now(UTC)
        certificate = (authority or self.authority).issue_cert(
            f"{user}.test",
            common_name=user,
            not_before=now - timedelta(days=3),
            not_after=now + timedelta(days=days),
        )
        files = ClientFiles(folder / "client.pem", folder / "client.key")
        files.certificate.write_bytes(b"".join(blob.bytes() for blob in certificate.cert_chain_pems))
        files.key.write_bytes(certificate.private_key_pem.bytes())
        return files

    # --- what an administrator does ---------------------------------------------------------------------------------

    def alter(self, settings: dict[str, str]) -> None:
        """Change the broker's settings while it runs."""
        entries = [
            ConfigEntry(name, value, incremental_operation=AlterConfigOpType.SET) for name, value in settings.items()
        ]
        resource = ConfigResource(ConfigResource.Type.BROKER, "1", incremental_configs=entries)
        self._administer("incremental_alter_configs", [resource])

    def set_password(self, user: str, password: str, *mechanisms: str) -> None:
        """Make a SCRAM user, or change its password; by default for both mechanisms."""
        for name in mechanisms or _SCRAM:  # Kafka takes one a request
            made = UserScramCredentialUpsertion(user, ScramCredentialInfo(_SCRAM[name], 4096), password.encode())
            self._administer("alter_user_scram_credentials", [made])

    def remove_user(self, user: str, *mechanisms: str) -> None:
        """Delete a SCRAM user."""
        for name in mechanisms or _SCRAM:
            self._administer("alter_user_scram_credentials", [UserScramCredentialDeletion(user, _SCRAM[name])])

    def grant(self, user: str, topic: str, *operations: str) -> None:
        """Allow a user operations on a topic: by default WRITE, which includes DESCRIBE."""
        self._administer("create_acls", [_acl(user, topic, operation) for operation in operations or ("WRITE",)])

    def revoke(self, user: str, topic: str | None = None) -> None:
        """Take all of a user's ACLs back, or those on one topic."""
        kind = ResourceType.ANY if topic is None else ResourceType.TOPIC
        principal, everything = f"User:{user}", (None, AclOperation.ANY, AclPermissionType.ANY)
        wanted = AclBindingFilter(kind, topic, ResourcePatternType.ANY, principal, *everything)  # type: ignore[arg-type]
        self._administer("delete_acls", [wanted])

    def _administer(self, call: str, what: list[Any]) -> None:
        administrator = AdminClient({"bootstrap.servers": self.bootstrap, "log_level": 0})
        futures: dict[Any, Any] = getattr(administrator, call)(what)
        for future in futures.values():
            future.result(ADMIN_TIMEOUT)

    # --- tokens -----------------------------------------------------------------------------------------------------

    def token(self, user: str, *, seconds: float = 300, audience: str = AUDIENCE) -> str:
        """Make a token that the listener SASL_TLS takes, unless it is for another audience or over."""
        now = time.time()
        claims = {
            "sub": user,
            "aud": audience,
            "iss": "tests",
            "iat": now - 60,
            "exp": now + seconds,
            "jti": str(uuid.uuid4()),
        }
        signed = f"{_base64url(json.dumps({'alg': 'RS256', 'kid': 'tests'}))}.{_base64url(json.dumps(claims))}"
        signature = self._signing.sign(signed.encode(), padding.PKCS1v15(), hashes.SHA256())
        return f"{signed}.{_base64url(signature)}"

    def _public_key(self) -> dict[str, str]:
        numbers = self._signing.public_key().public_numbers()
        return {
            "kty": "RSA",
            "kid": "tests",
            "use": "sig",
            "alg": "RS256",
            "n": _base64url(numbers.n.to_bytes(256, "big")),
            "e": _base64url(numbers.e.to_bytes(3, "big")),
        }


def _plain(passwords: dict[str, str]) -> str:
    users = " ".join(f'user_{user}="{password}"' for user, password in passwords.items())
    return f"{_SASL}.plain.PlainLoginModule required {users};"


def _acl(user: str, topic: str, operation: str) -> AclBinding:
    return AclBinding(
        ResourceType.TOPIC,
        topic,
        ResourcePatternType.LITERAL,
        f"User:{user}",
        "*",
        AclOperation[operation],
        AclPermissionType.ALLOW,
    )


def _pkcs8(key: bytes) -> bytes:
    """The only form Kafka reads a key in."""
    return serialization.load_pem_private_key(key, None).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _base64url(data: str | bytes) -> str:
    return base64.urlsafe_b64encode(data.encode() if isinstance(data, str) else data).rstrip(b"=").decode()
