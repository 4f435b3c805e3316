"""Opening a store: the schema it gets, two starts at once, and every reason it can't be opened said to the reader."""

from __future__ import annotations

import asyncio
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import URL, create_engine

from server.core.mapping import Mapping
from server.core.tokens import Scope
from server.store import migrate
from server.store import store as store_module
from server.store.errors import StoreError, StoreUnavailableError
from server.store.store import Store
from server.store.tables import MappingRow
from server.store.upgrade import alembic_config

if TYPE_CHECKING:
    from collections.abc import Iterator

_ROOT = Path(__file__).parents[2]
_OPEN = """
import asyncio, sys
from server.store.store import Store

async def start():
    store = Store(sys.argv[1], client_id_of=lambda spec: "")
    print("ready", flush=True)
    sys.stdin.readline()
    await store.open()
    await store.ping()
    await store.close()

asyncio.run(start())
"""
_NEXT_MIGRATION = """
import sqlalchemy as sa
from alembic import op

revision = "9000"
down_revision = "{newest}"
branch_labels = None
depends_on = None

def upgrade():
    op.create_table("half_done", sa.Column("id", sa.Integer(), primary_key=True))
    {then}
"""

_EVERYTHING_OF_0001 = (
    "SELECT * FROM mapping",
    "SELECT * FROM deleted_mapping",
    "SELECT * FROM file_entry",
    "SELECT * FROM session",
    "SELECT * FROM event",
)

MAPPING = Mapping.model_validate({"name": "demo", "mqtt": {"topic": "demo/#"}, "kafka": {"topic": "demo"}})


def store_at(path: Path) -> Store:
    url = URL.create("sqlite", database=str(path)).render_as_string()
    return Store(url, client_id_of=lambda spec: spec.client_id("base"))


async def opened_and_closed(path: Path) -> None:
    store = store_at(path)
    await store.open()
    await store.close()


def tables(path: Path) -> set[str]:
    with closing(sqlite3.connect(path)) as connection:
        return {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}


@pytest.fixture
def own_migrations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder of versions of a copy of the migrations."""
    folder = tmp_path / "migrations"
    shutil.copytree(migrate.MIGRATIONS, folder, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(migrate, "MIGRATIONS", folder)
    return folder / "versions"


@pytest.fixture
def unprivileged() -> Iterator[Path]:
    """Run as somebody for whom permissions hold, root included; return a folder of theirs."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o777)
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    own = folder / "own"
    own.mkdir()
    yield own
    own.chmod(0o700)
    if root:
        os.seteuid(0)
    shutil.rmtree(folder)


async def test_the_folder_and_the_file_are_created(tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "50%41 ?#.db"
    await opened_and_closed(path)
    assert tables(path) >= {"mapping", "file_entry", "session", "event", "alembic_version"}


async def test_the_migrated_schema_is_the_one_the_tables_describe(tmp_path: Path) -> None:
    await opened_and_closed(tmp_path / "store.db")
    engine = create_engine(f"sqlite:///{tmp_path}/store.db")
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
        assert compare_metadata(context, MappingRow.metadata) == []
    engine.dispose()


def test_a_migrations_file_is_named_by_its_revision() -> None:
    scripts = ScriptDirectory.from_config(alembic_config(migrate.MIGRATIONS))
    in_order = [script.revision for script in scripts.walk_revisions()][::-1]
    names = sorted(path.name for path in (migrate.MIGRATIONS / "versions").glob("*.py"))
    assert [name[:6] for name in names] == [f"v{revision}_" for revision in in_order]


def test_a_store_that_has_the_newest_schema_is_opened_without_alembic(tmp_path: Path) -> None:
    """Alembic is 11 MB that the process would never give back."""
    url = f"sqlite:///{tmp_path}/store.db"
    program = (
        "import asyncio, sys; from server.store.store import Store\n"
        f"store = Store({url!r}, client_id_of=lambda _: '')\n"
        "asyncio.run(store.open()); asyncio.run(store.close()); print('alembic' in sys.modules)"
    )
    said = [subprocess.check_output([sys.executable, "-c", program], text=True) for _ in range(2)]
    assert said == ["True\n", "False\n"]


async def test_the_database_is_durable_and_lets_readers_in(tmp_path: Path) -> None:
    store = store_at(tmp_path / "store.db")
    await store.open()
    pragmas = await store._read(
        lambda transaction: [
            transaction.connection().exec_driver_sql(f"PRAGMA {name}").scalar()
            for name in ("journal_mode", "synchronous", "foreign_keys")
        ]
    )
    assert pragmas == ["wal", 2, 1]
    await store.close()


async def test_a_store_in_memory_works_and_is_forgotten() -> None:
    store = Store("sqlite://", client_id_of=lambda _: "")
    await store.open()
    await store.create(MAPPING)
    await store.ping()
    assert len(await store.events(limit=5)) == 1
    await store.close()
    await store.open()
    assert await store.events(limit=5) == []
    await store.close()


async def test_a_ping_writes_the_time_also_where_somebody_deleted_its_row() -> None:
    store = Store("sqlite://", client_id_of=lambda _: "")
    await store.open()
    at = "SELECT at FROM heartbeat WHERE id = 1"
    times: list[str] = []
    for before in ("SELECT 1", "SELECT 1", "DELETE FROM heartbeat"):
        await store._write(lambda transaction, sql=before: transaction.connection().exec_driver_sql(sql))  # type: ignore[misc]
        await store.ping()
        times.append(await store._read(lambda transaction: transaction.connection().exec_driver_sql(at).scalar_one()))
    assert times[0] < times[1] < times[2]
    await store.close()


def test_several_processes_that_start_at_once_on_a_fresh_database_all_succeed(tmp_path: Path) -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", _OPEN, f"sqlite:///{tmp_path}/data/store.db"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=_ROOT,
        )
        for _ in range(4)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    assert [process.communicate()[1] for process in processes] == [""] * 4
    assert [process.returncode for process in processes] == [0] * 4


async def test_a_migration_that_crashes_leaves_a_file_that_starts(tmp_path: Path, own_migrations: Path) -> None:
    path = tmp_path / "store.db"
    following = own_migrations / "v9000_following.py"
    newest = max(path.name[1:5] for path in own_migrations.glob("v*.py"))
    following.write_text(_NEXT_MIGRATION.format(newest=newest, then="raise RuntimeError('crash')"))
    with pytest.raises(RuntimeError, match="crash"):
        await opened_and_closed(path)
    assert tables(path) == set()
    following.write_text(_NEXT_MIGRATION.format(newest=newest, then="return  # mended"))
    await opened_and_closed(path)
    assert "half_done" in tables(path)


async def test_an_older_database_is_brought_up_to_date_with_its_content(tmp_path: Path, own_migrations: Path) -> None:
    path = tmp_path / "store.db"
    store = store_at(path)
    await store.open()
    await store.create(MAPPING)
    await store.close()
    newest = max(path.name[1:5] for path in own_migrations.glob("v*.py"))
    (own_migrations / "v9000_following.py").write_text(_NEXT_MIGRATION.format(newest=newest, then="return"))
    await store.open()
    assert len(await store.events(limit=5)) == 1
    await store.close()
    assert "half_done" in tables(path)


async def test_a_store_of_schema_0001_keeps_all_it_has_and_gets_tokens(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript((Path(__file__).parent / "data" / "store-0001.sql").read_text())
        before = [connection.execute(query).fetchall() for query in _EVERYTHING_OF_0001]
    assert all(before), "the old store has something in each of its tables"
    store = store_at(path)
    await store.open()
    assert [stored.spec.name for stored in await store.mappings()] == ["möbel/1", "plant"]
    assert (await store.session("base-plant") or pytest.fail("no session")).held_qos2
    assert await store.tokens.all() == []
    await store.tokens.create("ci", Scope.WRITE, expires_at=None, actor="cli")
    newest, *older = await store.events(limit=100)
    assert (newest.action, newest.mapping) == ("create token", "")
    assert [event.mapping for event in older] == ["plant", "gone", "gone", "möbel/1", "plant"]
    await store.close()
    with closing(sqlite3.connect(path)) as connection:
        after = [connection.execute(query).fetchall() for query in _EVERYTHING_OF_0001]
        assert [rows[: len(found)] for rows, found in zip(after, before, strict=True)] == before
        assert connection.execute("SELECT version_num FROM alembic_version").fetchall() == [("0002",)]


async def test_a_database_of_a_newer_version_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    await opened_and_closed(path)
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(StoreError, match=r"store\.db was written by a newer version .*9999"):
        await opened_and_closed(path)


async def test_another_programs_database_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("CREATE TABLE photos (id INTEGER)")
    with pytest.raises(StoreError, match=r"another program's database .*photos"):
        await opened_and_closed(path)
    assert tables(path) == {"photos"}


async def test_a_file_that_is_not_a_database_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    path.write_text("forwarding: []\n" * 1000)
    with pytest.raises(StoreError, match=r"store\.db is damaged, or not a SQLite database; restore a backup") as raised:
        await opened_and_closed(path)
    assert not isinstance(raised.value, StoreUnavailableError)
    assert path.read_text() == "forwarding: []\n" * 1000


async def test_a_damaged_database_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    await opened_and_closed(path)
    pages = bytearray(path.read_bytes())
    pages[4096 + 8 : 2 * 4096] = b"\xa5" * (4096 - 8)
    path.write_bytes(pages)
    with pytest.raises(StoreError, match="is damaged") as raised:
        await opened_and_closed(path)
    assert not isinstance(raised.value, StoreUnavailableError)


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ('{"mqtt": {"topic": "a"}, "kafka": {"topik": "t"}}', r"kafka\.topic: Field required; kafka\.topik: Extra"),
        ('"a string"', "it is not a JSON object"),
        ("{broken", "its row can't be read"),
    ],
)
async def test_a_mapping_that_this_version_does_not_understand_is_refused_by_its_name(
    tmp_path: Path, spec: str, reason: str
) -> None:
    path = tmp_path / "store.db"
    await opened_and_closed(path)
    with closing(sqlite3.connect(path)) as connection, connection:
        row = ("strange", spec, False, 1, "api", "2026-01-01", "2026-01-01")
        connection.execute("INSERT INTO mapping VALUES (?, ?, ?, ?, ?, ?, ?)", row)
    with pytest.raises(StoreError, match=rf"mapping.* is not one this version understands: {reason}") as raised:
        await opened_and_closed(path)
    assert "run the version that wrote it, or delete its row from the table mapping" in str(raised.value)
    assert "\n" not in str(raised.value)
    assert not isinstance(raised.value, StoreUnavailableError)


async def test_a_folder_in_the_files_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "store.db").mkdir()
    with pytest.raises(StoreError, match=r"store\.db is not a file"):
        await opened_and_closed(tmp_path / "store.db")


async def test_a_file_in_the_folders_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "data").touch()
    with pytest.raises(StoreError, match=r"the folder .*data for the store can't be created"):
        await opened_and_closed(tmp_path / "data" / "store.db")


async def test_a_folder_that_cannot_be_written_to_is_refused(unprivileged: Path) -> None:
    unprivileged.chmod(0o555)
    with pytest.raises(StoreError, match=r"store\.db can't be created: Permission denied; let the service write"):
        await opened_and_closed(unprivileged / "store.db")


async def test_a_file_that_cannot_be_written_to_is_refused(unprivileged: Path) -> None:
    path = unprivileged / "store.db"
    await opened_and_closed(path)
    path.chmod(0o444)
    with pytest.raises(StoreError, match=r"store\.db can't be written to; give the service write permission"):
        await opened_and_closed(path)


async def test_a_file_that_cannot_be_read_is_refused(unprivileged: Path) -> None:
    path = unprivileged / "store.db"
    await opened_and_closed(path)
    path.chmod(0)
    with pytest.raises(StoreError, match=r"store\.db can't be opened; check"):
        await opened_and_closed(path)


async def test_a_locked_database_is_waited_for_and_then_said_to_be_locked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "store.db"
    await opened_and_closed(path)
    monkeypatch.setattr(store_module, "START_SECONDS", 0.5)
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreUnavailableError, match=r"store\.db is locked by another program"):
            await opened_and_closed(path)
    await opened_and_closed(path)


async def test_a_fresh_file_that_another_program_has_locked_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "store.db"
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        asyncio.get_running_loop().call_later(0.2, other.rollback)
        await opened_and_closed(path)
    path.unlink()
    monkeypatch.setattr(store_module, "START_SECONDS", 0.5)
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(StoreUnavailableError, match=r"store\.db is locked by another program"):
            await opened_and_closed(path)


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("store.db", "can't be read"),
        ("", "can't be read"),
        ("postgresql+asyncpg://mkf:secret@db/mkf", r"'postgresql\+asyncpg', which is not supported"),
        ("postgresql://mkf:secret@db", "names no database"),
        ("mysql://mkf:secret@db/mkf", "'mysql', which is not supported"),
        ("sqlite+aiosqlite:///store.db", r"'sqlite\+aiosqlite', which is not supported"),
        ("sqlite:///store.db?mode=ro", r"options .* not supported \(mode\)"),
        ("sqlite://data/store.db", "names a host, 'data'"),
        ("sqlite://db:port/secret", "can't be read"),
    ],
)
async def test_a_url_that_is_not_supported_is_refused_without_showing_it(url: str, reason: str) -> None:
    with pytest.raises(StoreError, match=reason) as raised:
        await Store(url, client_id_of=lambda _: "").open()
    assert "sqlite:////data/mkf.db" in str(raised.value)
    assert "secret" not in str(raised.value)
