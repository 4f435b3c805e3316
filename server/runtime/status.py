"""The status of one mapping, as the API shows it. Times are UTC, rates per second, sizes bytes."""

from __future__ import annotations

from datetime import datetime  # noqa: TC003 - pydantic needs it at run time
from typing import Literal

from pydantic import BaseModel

from server.core.lifecycle import State  # noqa: TC001 - pydantic needs it at run time
from server.core.subscription import WireProtocol  # noqa: TC001 - pydantic needs it at run time


class MqttStatus(BaseModel):
    """The MQTT side."""

    connected: bool
    session_present: bool | None = None
    protocol: WireProtocol | None = None
    client_id: str
    durable: bool
    granted_qos: dict[str, int] = {}
    session_expiry: int | None = None


class InFlight(BaseModel):
    """Received, and neither in Kafka nor given up."""

    messages: int
    bytes: int


class Counters(BaseModel):
    """Since the process started. received = delivered + dead_lettered + dropped + in_flight.messages, always."""

    received: int = 0
    delivered: int = 0
    deduplicated: int = 0
    dead_lettered: int = 0
    dropped: dict[str, int] = {}
    reconnects: int = 0
    sessions_lost: int = 0


class Rates(BaseModel):
    """Over the last seconds."""

    received_per_second: float = 0.0
    delivered_per_second: float = 0.0


class LastError(BaseModel):
    """The latest trouble, kept after recovery."""

    at: datetime
    reason: str
    detail: str


class MappingStatus(BaseModel):
    """Everything an operator sees of a running mapping."""

    name: str
    state: State
    since: datetime
    reason: str | None = None
    desired: Literal["running", "paused"]
    generation: int
    mqtt: MqttStatus
    in_flight: InFlight
    counters: Counters
    rates: Rates
    last_message_at: datetime | None = None
    last_error: LastError | None = None
    warnings: list[str] = []
