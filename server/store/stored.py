"""What the store hands out: its content as plain values, free of SQL."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from datetime import datetime

    from server.core.mapping import Mapping
    from server.core.subscription import Session
    from server.core.tokens import Scope

Origin = Literal["file", "api"]
# Who did it: "api" (without a token), "token:NAME", "admin (environment)", "cli", "file" or "service".
Actor = str


@dataclass(frozen=True, slots=True)
class StoredMapping:
    """A mapping as it is wanted now; `spec.paused` is the stored pause, times are UTC.

    `generation` starts at 1 and rises with every change; `origin` says who created it and never changes.
    """

    spec: Mapping
    generation: int
    origin: Origin
    created_at: datetime
    updated_at: datetime


@dataclass(frozen=True, slots=True)
class SessionChange:
    """What was observed of the session of `client_id`; None if the broker does not have it any more.

    What is wanted of it (`mapping`, `removal_pending`, `clean_start`) is changed by others meanwhile, so its row keeps
    that: unless the session `claims` the client id for its mapping, or `began_afresh`, so that the wish for a clean
    start is granted. A new row of a mapping that is gone by now is to be removed at once.
    """

    client_id: str
    session: Session | None
    claims: bool = False
    began_afresh: bool = False


@dataclass(frozen=True, slots=True)
class StoredEvent:
    """Who did what to which mapping ("" if to none); `id` rises with time, `at` is UTC, `actor` is an Actor."""

    id: int
    at: datetime
    actor: str
    action: str
    mapping: str
    detail: dict[str, Any]


@dataclass(frozen=True, slots=True)
class StoredToken:
    """An API token, without the secret, which nobody keeps; times are UTC.

    A token without `expires_at` does not expire. `last_used_at` is up to a minute behind.
    """

    id: int
    name: str
    hash: str = field(repr=False)
    scope: Scope
    created_at: datetime
    expires_at: datetime | None = None
    last_used_at: datetime | None = None
    revoked_at: datetime | None = None

    def state(self, now: datetime) -> Literal["active", "expired", "revoked"]:
        """Whether it is accepted at `now`, or why not."""
        if self.revoked_at is not None:
            return "revoked"
        return "active" if self.expires_at is None or now < self.expires_at else "expired"


@dataclass(frozen=True, slots=True)
class ApplyReport:
    """What applying the configuration file did, as names of mappings; `warnings` are sentences.

    `unchanged` also holds entries that the API has deleted since and the file has not touched.
    """

    created: tuple[str, ...] = ()
    replaced: tuple[str, ...] = ()
    unchanged: tuple[str, ...] = ()
    deleted: tuple[str, ...] = ()
    paused: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
