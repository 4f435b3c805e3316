"""What the API needs of the part that runs the mappings."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from server.core.lifecycle import State
    from server.core.mapping import Mapping
    from server.runtime.health import Health
    from server.runtime.status import MappingStatus
    from server.store.store import StoredMapping


class Runtime(Protocol):
    """The observed side: the store says what is wanted, this says what runs."""

    def wake(self) -> None:
        """Look at the store again soon: the desired state changed."""

    def status(self, stored: StoredMapping) -> MappingStatus:
        """The status of a mapping; also of one that is not started yet."""
        ...

    def state(self, name: str) -> State:
        """The observed state of a mapping."""
        ...

    def session_reset(self, name: str) -> None:
        """The sessions of a paused mapping are to be ended at the broker."""

    def health(self) -> Health:
        """The facts the probes judge; costs neither SQL nor a network round trip."""
        ...

    def client_id_of(self, spec: Mapping) -> str:
        """The effective MQTT client id; "" means the session is not durable."""
        ...

    def record_limit(self) -> int | None:
        """The largest record that is configured to be sent to Kafka, in bytes; None if only Kafka's own limit holds."""
        ...
