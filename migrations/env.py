"""Runs the migrations on the connection, and in the transaction, of whoever asks for them (server.store.migrate)."""

from __future__ import annotations

from alembic import context

from server.store.tables import MappingRow

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=MappingRow.metadata,
    render_as_batch=True,  # SQLite can't alter most things in place
    transactional_ddl=True,  # alembic thinks SQLite can't; it can, with the driver out of the way
)
context.run_migrations()
