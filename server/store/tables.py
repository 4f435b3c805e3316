"""The tables, for SQLite and Postgres. A change here needs a migration; a test compares the two."""

from datetime import UTC, datetime
from typing import Any, cast

from pydantic import ValidationError
from sqlalchemy import JSON, Column, DateTime, Dialect
from sqlalchemy.types import TypeDecorator
from sqlmodel import Field, SQLModel

from server.core.mapping import Mapping
from server.core.subscription import Session, Subscription, WireProtocol
from server.core.tokens import Scope
from server.store.errors import StoreError
from server.store.stored import Origin, StoredEvent, StoredMapping, StoredToken


class UtcDateTime(TypeDecorator[datetime]):
    """A point in time, UTC: SQLite forgets the time zone, Postgres gives the session's."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Bring `value` to UTC before it is written."""
        del dialect
        return None if value is None else value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Bring what was read to UTC."""
        del dialect
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


def not_understood(what: str, why: str) -> StoreError:
    """The error of a row that this version can't read."""
    return StoreError(
        f"{what} is not one this version understands: {why};"
        " run the version that wrote it, or delete its row from the table mapping"
    )


class MappingRow(SQLModel, table=True):
    """A mapping as it is wanted; `spec` is its document without name and paused, which have columns."""

    __tablename__ = "mapping"

    name: str = Field(primary_key=True)
    spec: dict[str, Any] = Field(sa_column=Column(JSON, nullable=False))
    paused: bool
    generation: int
    origin: str
    created_at: datetime = Field(sa_column=Column(UtcDateTime, nullable=False))
    updated_at: datetime = Field(sa_column=Column(UtcDateTime, nullable=False))

    def keep(self, spec: Mapping) -> None:
        """Take over everything of `spec` but its name."""
        document = spec.document()
        self.paused = document.pop("paused")
        del document["name"]
        self.spec = document

    def stored(self) -> StoredMapping:
        """The row as a value.

        Raises:
            StoreError: the row holds what this version does not accept as a mapping.
        """
        if not isinstance(self.spec, dict):
            raise not_understood(f"the stored mapping {self.name!r}", "it is not a JSON object")
        try:
            spec = Mapping.model_validate({**self.spec, "name": self.name, "paused": self.paused})
        except ValidationError as error:
            problems = (f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors())
            raise not_understood(f"the stored mapping {self.name!r}", "; ".join(problems)) from error
        return StoredMapping(spec, self.generation, cast("Origin", self.origin), self.created_at, self.updated_at)


class DeletedMappingRow(SQLModel, table=True):
    """The last generation of a mapping that was deleted; one of the same name goes on from it."""

    __tablename__ = "deleted_mapping"

    name: str = Field(primary_key=True)
    generation: int


class FileEntryRow(SQLModel, table=True):
    """What the file said about an entry last time, remembered also when the API has deleted the mapping since."""

    __tablename__ = "file_entry"

    name: str = Field(primary_key=True)
    digest: str


class SessionRow(SQLModel, table=True):
    """An MQTT session; it outlives its mapping until it is ended at the broker, so it has no foreign key."""

    __tablename__ = "session"

    client_id: str = Field(primary_key=True)
    mapping: str = Field(index=True)
    protocol: str | None = None
    subscriptions: list[Any] = Field(sa_column=Column(JSON, nullable=False))
    established: bool
    held_qos2: bool
    removal_pending: bool
    clean_start: bool
    last_identifier: int = 0

    @classmethod
    def of(cls, session: Session) -> "SessionRow":
        """The row that remembers `session`."""
        return cls(
            client_id=session.client_id,
            mapping=session.mapping,
            protocol=session.protocol,
            subscriptions=[
                [each.topic_filter, each.qos, each.identifier, each.granted] for each in session.subscriptions
            ],
            established=session.established,
            held_qos2=session.held_qos2,
            removal_pending=session.removal_pending,
            clean_start=session.clean_start,
            last_identifier=session.last_identifier,
        )

    def session(self) -> Session:
        """The row as a value."""
        return Session(
            client_id=self.client_id,
            mapping=self.mapping,
            protocol=cast("WireProtocol | None", self.protocol),
            subscriptions=tuple(Subscription(*each) for each in self.subscriptions),
            established=self.established,
            held_qos2=self.held_qos2,
            removal_pending=self.removal_pending,
            clean_start=self.clean_start,
            last_identifier=self.last_identifier,
        )


class EventRow(SQLModel, table=True):
    """Something that happened to a mapping, or, where that is "", to the service."""

    __tablename__ = "event"

    id: int | None = Field(default=None, primary_key=True)
    at: datetime = Field(sa_column=Column(UtcDateTime, nullable=False))
    actor: str
    action: str
    mapping: str
    detail: dict[str, Any] = Field(sa_column=Column(JSON, nullable=False))

    def stored(self) -> StoredEvent:
        """The row, which has been written and so has its id, as a value."""
        return StoredEvent(cast("int", self.id), self.at, self.actor, self.action, self.mapping, self.detail)


class TokenRow(SQLModel, table=True):
    """An API token: the hash of its secret, and what is known of it. Rows stay when a token is revoked."""

    __tablename__ = "api_token"

    id: int | None = Field(default=None, primary_key=True)
    name: str
    hash: str = Field(index=True, unique=True)
    scope: str
    created_at: datetime = Field(sa_column=Column(UtcDateTime, nullable=False))
    expires_at: datetime | None = Field(default=None, sa_column=Column(UtcDateTime, nullable=True))
    last_used_at: datetime | None = Field(default=None, sa_column=Column(UtcDateTime, nullable=True))
    revoked_at: datetime | None = Field(default=None, sa_column=Column(UtcDateTime, nullable=True))

    def stored(self) -> StoredToken:
        """The row, which has been written and so has its id, as a value."""
        return StoredToken(
            id=cast("int", self.id),
            name=self.name,
            hash=self.hash,
            scope=Scope(self.scope),
            created_at=self.created_at,
            expires_at=self.expires_at,
            last_used_at=self.last_used_at,
            revoked_at=self.revoked_at,
        )


class HeartbeatRow(SQLModel, table=True):
    """The one row that a readiness check writes, to know that writing works."""

    __tablename__ = "heartbeat"

    id: int = Field(default=1, primary_key=True)
    at: datetime = Field(sa_column=Column(UtcDateTime, nullable=False))
