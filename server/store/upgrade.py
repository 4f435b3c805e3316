"""Running alembic, which only a database needs that is not at the newest schema."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from alembic import command
from alembic.config import Config

if TYPE_CHECKING:
    from pathlib import Path

    from sqlalchemy import Connection

# Alembic keeps what it works on in module globals, so two stores of one process must take turns.
_alembic = threading.Lock()


def alembic_config(folder: Path) -> Config:
    """Alembic's configuration for the migrations in `folder`, in code, so that no alembic.ini has to be found."""
    config = Config()
    config.set_main_option("script_location", str(folder).replace("%", "%%"))
    return config


def upgrade(connection: Connection, folder: Path) -> None:
    """Apply the missing migrations of this folder, inside the transaction `connection` is in."""
    config = alembic_config(folder)
    with _alembic:
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
