"""Where the brokers are, and how publishers and readers reach them."""

from __future__ import annotations

import socket
import ssl
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

CONNECT_TIMEOUT = 10.0


@dataclass(frozen=True, slots=True)
class Tls:
    """PEM files: the authority that signed the broker's certificate, and a client's own certificate and key."""

    ca: Path
    cert: Path | None = None
    key: Path | None = None


@dataclass(frozen=True, slots=True)
class MqttEndpoint:
    """An MQTT broker."""

    host: str
    port: int
    tls: Tls | None = None

    def open(self) -> socket.socket:
        """Connect; the socket blocks.

        Raises:
            OSError: nobody is there, or TLS fails.
        """
        plain = socket.create_connection((self.host, self.port), CONNECT_TIMEOUT)
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        plain.settimeout(None)
        if self.tls is None:
            return plain
        context = ssl.create_default_context(cafile=self.tls.ca)
        if self.tls.cert is not None:
            context.load_cert_chain(self.tls.cert, self.tls.key)
        return context.wrap_socket(plain, server_hostname=self.host)


@dataclass(frozen=True, slots=True)
class KafkaEndpoint:
    """A Kafka cluster."""

    host: str
    port: int
    tls: Tls | None = None

    @property
    def bootstrap(self) -> str:
        """`host:port`."""
        return f"{self.host}:{self.port}"

    @property
    def client(self) -> dict[str, str | int | float | bool]:
        """What every librdkafka client needs to reach it."""
        # Its remarks on how it ends are of no interest.
        options: dict[str, str | int | float | bool] = {"bootstrap.servers": self.bootstrap, "log_level": 4}
        if self.tls is not None:
            options |= {"security.protocol": "SSL", "ssl.ca.location": str(self.tls.ca)}
            if self.tls.cert is not None:
                options |= {"ssl.certificate.location": str(self.tls.cert)}
            if self.tls.key is not None:
                options |= {"ssl.key.location": str(self.tls.key)}
        return options
