"""How to reach the two brokers: the `mqtt` and `kafka` sections of the configuration file."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, model_validator

from server.core.address import address
from server.core.topics import client_id_error, mqtt_string_error

Protocol = Literal["auto", "5", "3.1.1"]

_UNIT_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}
_DURATION = re.compile(r"(\d+)\s*([smhd]?)")
_REQUEST_PATH = re.compile(r"/[!-\"$-~]*")  # what an HTTP request line can carry (RFC 9112, 3.2.1); no fragment
_ALPN_MAX_BYTES = 255  # RFC 7301, 3.1


def _seconds(value: Any) -> Any:
    """Read 15, "15s", "10m", "24h" or "7d" as seconds."""
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise ValueError("expected a duration such as 15s, 10m, 24h or 7d")  # noqa: TRY004 - pydantic needs ValueError
    found = _DURATION.fullmatch(str(value).strip())
    if not found:
        raise ValueError(f"{value!r} is not a duration; expected such as 15s, 10m, 24h or 7d")
    return int(found[1]) * _UNIT_SECONDS[found[2]]


def _mqtt_text(value: str) -> str:
    if error := mqtt_string_error(value, "this"):
        raise ValueError(error)
    return value


def _yes_or_no(value: Any) -> Any:
    """Read `tls: true` as TLS with nothing said about it, and false as none; from a variable they come as text."""
    return {"true": {}, "false": None}.get(str(value).lower(), value) if isinstance(value, bool | str) else value


def _one_or_several(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _alpn_name(value: str) -> str:
    if not value.isascii() or not 1 <= len(value) <= _ALPN_MAX_BYTES:
        raise ValueError(f"expected a protocol name of 1 to {_ALPN_MAX_BYTES} ASCII characters, such as x-amzn-mqtt-ca")
    return value


def _request_path(value: str) -> str:
    if not _REQUEST_PATH.fullmatch(value):
        raise ValueError("expected a path such as /mqtt: it begins with / and has no spaces, no # and only ASCII")
    return value


def _client_id(value: str) -> str:
    if error := client_id_error(value):
        raise ValueError(error)
    return value


def _protocol_name(value: Any) -> Any:
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


FilePath = Annotated[str, Field(min_length=1)]
Seconds = Annotated[int, BeforeValidator(_seconds)]
MqttText = Annotated[str, AfterValidator(_mqtt_text)]
ClientId = Annotated[str, AfterValidator(_client_id)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


class Credentials(_Section):
    """MQTT user name and password."""

    username: MqttText
    password: SecretStr | None = None


class MqttTls(_Section):
    """TLS to the MQTT broker. The paths are of PEM files.

    Without `ca_cert` the authorities are trusted that the system trusts. `server_name` is what the broker's certificate
    must be made out to, and what is asked for by SNI, where that is not `host`. `alpn` are the protocols to offer, by
    which some clouds tell MQTT from HTTPS.
    """

    ca_cert: FilePath | None = None
    client_cert: FilePath | None = None
    client_key: FilePath | None = None
    client_key_password: SecretStr | None = None
    server_name: Annotated[str, Field(min_length=1)] | None = None
    alpn: Annotated[tuple[Annotated[str, AfterValidator(_alpn_name)], ...], BeforeValidator(_one_or_several)] = ()
    insecure_skip_verify: bool = False

    @model_validator(mode="after")
    def _cert_and_key_together(self) -> Self:
        if (self.client_cert is None) != (self.client_key is None):
            raise ValueError("client_cert and client_key must be set together")
        if self.client_key_password is not None and self.client_key is None:
            raise ValueError("client_key_password is set, but no client_key")
        return self


class MqttConnection(_Section):
    """How to reach the MQTT broker. Durations are seconds."""

    host: str = Field(min_length=1)
    port: int = Field(1883, ge=1, le=65_535)
    client_id: ClientId = ""
    protocol: Annotated[Protocol, BeforeValidator(_protocol_name)] = "auto"
    transport: Literal["tcp", "websocket"] = "tcp"
    path: Annotated[str, AfterValidator(_request_path)] = "/mqtt"
    session_expiry: Annotated[Seconds, Field(ge=1, le=0xFFFF_FFFF)] = 24 * 3600
    keep_alive: Annotated[Seconds, Field(ge=1, le=65_535)] = 15
    credentials: Credentials | None = None
    tls: Annotated[MqttTls | None, BeforeValidator(_yes_or_no)] = None

    @property
    def is_plain_tcp(self) -> bool:
        """Whether MQTT has nothing between itself and TCP."""
        return self.transport == "tcp" and self.tls is None

    @property
    def server_name(self) -> str:
        """Whom the broker's certificate must be made out to."""
        return (self.tls.server_name if self.tls else None) or self.host

    @property
    def address(self) -> str:
        """`host:port`, for messages to people."""
        return address(self.host, self.port)


class KafkaConnection(_Section):
    """How to reach Kafka: `config` has librdkafka's names, see core/kafka_options.py."""

    bootstrap_server: str = Field("localhost", min_length=1)
    port: int = Field(9092, ge=1, le=65_535)
    config: dict[str, str | int | float | bool | None] = Field(default_factory=dict, repr=False)

    @property
    def address(self) -> str:
        """The bootstrap address, `host:port`, unless `config` names other servers."""
        servers = self.config.get("bootstrap.servers") or self.config.get("metadata.broker.list")
        return str(servers) if servers else address(self.bootstrap_server, self.port)
