"""Bringing a database to the schema this version knows."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import TYPE_CHECKING

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import inspect

from server.store.errors import StoreError

if TYPE_CHECKING:
    from sqlalchemy import Connection

_PACKAGED = Path(__file__).with_name("migrations")
# A wheel carries the migrations inside the package; a checkout has them at its top.
MIGRATIONS = _PACKAGED if _PACKAGED.is_dir() else Path(__file__).resolve().parents[2] / "migrations"

# Alembic keeps what it works on in module globals, so two stores of one process must take turns.
_alembic = threading.Lock()


def alembic_config(folder: Path) -> Config:
    """Alembic's configuration for the migrations in `folder`, in code, so that no alembic.ini has to be found."""
    config = Config()
    config.set_main_option("script_location", str(folder).replace("%", "%%"))
    return config


def migrate(connection: Connection, name: str) -> None:
    """Apply the missing migrations, inside the transaction `connection` is in; `name` is what messages call it.

    The transaction must hold the write lock already, so that of two processes that start at once one waits for the
    other, and must be rolled back on any exception.

    Raises:
        StoreError: a newer version, or another program, has written the database.
    """
    config = alembic_config(MIGRATIONS)
    scripts = ScriptDirectory.from_config(config)
    current = MigrationContext.configure(connection).get_current_heads()
    known = {script.revision for script in scripts.walk_revisions()}
    if unknown := set(current) - known:
        raise StoreError(
            f"the store {name} was written by a newer version of the service (its schema is {', '.join(unknown)});"
            " run that version, or name another file in the store's URL"
        )
    if not current and (others := set(inspect(connection).get_table_names()) - {"alembic_version"}):
        raise StoreError(
            f"the store {name} is another program's database (it has the table {min(others)});"
            " name another file in the store's URL"
        )
    if set(current) == set(scripts.get_heads()):
        return
    with _alembic:
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
