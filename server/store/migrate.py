"""Bringing a database to the schema this version knows."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import column, inspect, select, table

from server.store.errors import StoreError

if TYPE_CHECKING:
    from sqlalchemy import Connection

_PACKAGED = Path(__file__).with_name("migrations")
# A wheel carries the migrations inside the package; a checkout has them at its top.
MIGRATIONS = _PACKAGED if _PACKAGED.is_dir() else Path(__file__).resolve().parents[2] / "migrations"

_VERSION = table("alembic_version", column("version_num"))


def migrate(connection: Connection, name: str, elsewhere: str) -> None:
    """Apply the missing migrations, inside the transaction `connection` is in.

    `name` is what messages call the database, `elsewhere` how they say to take another.

    The transaction must hold the write lock already, so that of two processes that start at once one waits for the
    other, and must be rolled back on any exception.

    Raises:
        StoreError: a newer version, or another program, has written the database.
    """
    tables = set(inspect(connection).get_table_names())
    current = set(connection.scalars(select(_VERSION.c.version_num))) if _VERSION.name in tables else set()
    known = _revisions(MIGRATIONS)
    if unknown := current - set(known):
        raise StoreError(
            f"the store {name} was written by a newer version of the service (its schema is {', '.join(unknown)});"
            f" run that version, or {elsewhere}"
        )
    if not current and (others := tables - {_VERSION.name}):
        raise StoreError(
            f"the store {name} is another program's database (it has the table {min(others)}); {elsewhere}"
        )
    if current == {known[-1]}:
        return
    from server.store.upgrade import upgrade  # noqa: PLC0415 - alembic takes 11 MB, which only this start needs

    upgrade(connection, MIGRATIONS)


def _revisions(folder: Path) -> list[str]:
    """The revisions in order: `versions/v0001_first_tables.py` is 0001."""
    return sorted(path.name[1:5] for path in (folder / "versions").glob("v*.py"))
