"""What can go wrong with the store, said to whoever has to mend it."""

from __future__ import annotations


class StoreError(Exception):
    """The store can't be used; the message says what is wrong, with which file, and what to do about it."""


class StoreUnavailableError(StoreError):
    """The store worked, or would work, but does not now: locked, full, removed, or too slow. Worth another try.

    `undecided` says that a change may have been made all the same: nobody knows, until it is read again.
    """

    def __init__(self, message: str, *, undecided: bool = False) -> None:
        super().__init__(message)
        self.undecided = undecided


class MappingNotFoundError(StoreError):
    """There is no mapping of this name."""

    def __init__(self, name: str) -> None:
        super().__init__(f"there is no mapping {name!r}")
        self.name = name


class NameTakenError(StoreError):
    """A mapping of this name exists already."""

    def __init__(self, name: str) -> None:
        super().__init__(f"a mapping {name!r} exists already; choose another name, or change that one")
        self.name = name


class MappingNotPausedError(StoreError):
    """What was asked for needs the mapping to be paused."""

    def __init__(self, name: str) -> None:
        super().__init__(f"the mapping {name!r} is not paused; pause it first")
        self.name = name


class ClientIdTakenError(StoreError):
    """Another mapping, `mapping`, already uses this MQTT client id."""

    def __init__(self, client_id: str, mapping: str) -> None:
        super().__init__(
            f"the MQTT client id {client_id!r} is the mapping {mapping!r}'s; two sessions can't share one,"
            " so set another mqtt.client_id"
        )
        self.client_id = client_id
        self.mapping = mapping


class GenerationChangedError(StoreError):
    """Somebody else changed the mapping since it was read: it has generation `actual`, not `expected`."""

    def __init__(self, name: str, *, expected: int, actual: int) -> None:
        super().__init__(f"the mapping {name!r} has changed: its generation is {actual}, not {expected}; read it again")
        self.name = name
        self.expected = expected
        self.actual = actual


class TokenNotFoundError(StoreError):
    """There is no API token with this id."""

    def __init__(self, token_id: int) -> None:
        super().__init__(f"there is no API token with the id {token_id}")


class TokenNameTakenError(StoreError):
    """A token of this name is in use."""

    def __init__(self, name: str) -> None:
        super().__init__(f"an API token {name!r} is in use; choose another name, or revoke that one first")
