"""A store in Postgres: how it is opened, what its server can do to it, and that no error shows the password."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
import traceback
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch
from urllib.parse import quote

import psycopg
import pytest
import trustme
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import create_engine, event, make_url, text

from server.api.problems import of_store_error
from server.core.mapping import Mapping
from server.store import migrate
from server.store.errors import MappingNotFoundError, StoreError, StoreUnavailableError
from server.store.lock import lock_at
from server.store.postgres import PostgresServer
from server.store.postgres_database import PostgresDatabase
from server.store.store import Store
from server.store.tables import MappingRow
from server.store.upgrade import alembic_config
from tests.brokers.postgres import PASSWORD, Postgres

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from sqlmodel import Session as Transaction

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
_ENDLESS = text("SELECT pg_sleep(60)")


def mapping(name: str = "demo", **fields: Any) -> Mapping:
    return Mapping.model_validate({"name": name, "mqtt": {"topic": "demo/#"}, "kafka": {"topic": "demo"}, **fields})


def pause(spec: Mapping) -> Mapping:
    return spec.model_copy(update={"paused": True})


def store_at(url: str, **options: Any) -> Store:
    return Store(url, client_id_of=lambda spec: spec.client_id("base"), **options)


async def backend(store: Store) -> int:
    """Which of the server's processes serves the store."""
    pid = await store._read(lambda transaction: transaction.connection().exec_driver_sql("SELECT pg_backend_pid()"))
    return int(pid.scalar_one())


def has_no_secret(error: BaseException) -> bool:
    """Whether neither the message nor the traceback shows the password, as it is or as a URL has it."""
    shown = "".join(traceback.format_exception(error)) + repr(error)
    return PASSWORD not in shown and quote(PASSWORD, safe="") not in shown


@pytest.fixture
def url(postgres: Postgres) -> str:
    return postgres.fresh_url()


@pytest.fixture
async def store(url: str) -> AsyncIterator[Store]:
    store = store_at(url)
    await store.open()
    yield store
    await store.close()


@pytest.fixture
async def breakable(own_postgres: Postgres) -> AsyncIterator[Store]:
    """Return a store with a mapping in a Postgres of its own."""
    store = store_at(own_postgres.fresh_url())
    await store.open()
    await store.create(mapping())
    yield store
    await store.close()


# --- opening ----------------------------------------------------------------------------------------------------------


async def test_the_migrated_schema_is_the_one_the_tables_describe(store: Store, url: str) -> None:
    await store.ping()
    engine = create_engine(url)
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
        assert compare_metadata(context, MappingRow.metadata) == []
    engine.dispose()


def test_several_processes_that_start_at_once_on_an_empty_database_all_succeed(url: str) -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", _OPEN, url],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=_ROOT,
        )
        for _ in range(3)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    assert [process.communicate()[1] for process in processes] == [""] * 3
    assert [process.returncode for process in processes] == [0] * 3


async def test_a_migration_that_crashes_leaves_nothing_behind(
    url: str, postgres: Postgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    versions = tmp_path / "migrations" / "versions"
    versions.mkdir(parents=True)
    for name in ("env.py", "versions/v0001_first_tables.py"):
        (tmp_path / "migrations" / name).write_text((migrate.MIGRATIONS / name).read_text())
    (versions / "v0002_second.py").write_text(
        'revision, down_revision, branch_labels, depends_on = "0002", "0001", None, None\n'
        'def upgrade():\n    raise RuntimeError("crash")\n'
    )
    monkeypatch.setattr(migrate, "MIGRATIONS", tmp_path / "migrations")
    with pytest.raises(RuntimeError, match="crash"):
        await store_at(url).open()
    with postgres.connect() as connection:
        schema = url.rpartition("%3D")[2]
        found = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = %s", (schema,)).fetchall()
    assert found == []


@pytest.mark.parametrize("revision", sorted(path.name[1:5] for path in (migrate.MIGRATIONS / "versions").glob("v*.py")))
async def test_every_older_schema_is_brought_up_to_date_with_its_content(url: str, revision: str) -> None:
    engine = create_engine(url)
    with engine.begin() as connection:
        config = alembic_config(migrate.MIGRATIONS)
        config.attributes["connection"] = connection
        command.upgrade(config, revision)
        document = mapping().document()
        spec = json.dumps({key: value for key, value in document.items() if key not in {"name", "paused"}})
        connection.execute(
            text("INSERT INTO mapping VALUES ('demo', :spec, true, 7, 'api', now(), now())"), {"spec": spec}
        )
    engine.dispose()
    store = store_at(url)
    await store.open()
    found = await store.mapping("demo")
    assert (found.spec, found.generation) == (pause(mapping()), 7)
    assert (await store.change("demo", lambda _: mapping(), expected=7, action="resume")).generation == 8
    assert await store.tokens.all() == []
    await store.close()


async def test_a_database_of_a_newer_version_and_one_of_another_program_are_refused(
    store: Store, url: str, postgres: Postgres
) -> None:
    await store._write(
        lambda transaction: transaction.connection().execute(text("UPDATE alembic_version SET version_num = '9999'"))
    )
    with pytest.raises(
        StoreError, match=r"written by a newer version .*9999.*; run that version, or name another data"
    ):
        await store_at(url).open()
    others = postgres.fresh_url()
    with postgres.connect() as connection:
        connection.execute(f"CREATE TABLE {others.rpartition('%3D')[2]}.photos (id integer)")
    with pytest.raises(
        StoreError, match=r"another program's database .*photos.*; name another database, or another sch"
    ):
        await store_at(others).open()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (("mkf:", "nobody:"), r"does not let us in: check user.*password authentication failed"),
        (("canary", "wrong"), r"does not let us in: check user.*password authentication failed"),
        (("/postgres?", "/nowhere?"), r"nowhere does not exist: create the database, or name another"),
        (("/postgres?", "/latin?"), r"latin has the encoding LATIN1, which can't hold every text"),
        (("search_path%3D", "search_path%3Dno_"), "has no schema to use: create it, or name another database"),
        (("options=", "sslmode=require&options="), r"can't be used over TLS .*check sslmode"),
        (("options=", "sslmode=perhaps&options="), r"can't be used over TLS .*invalid sslmode value"),
        (("options=", "speed=high&options="), r"as the store's URL says: correct its options \(invalid connection opt"),
        (("search_path", "serch_path"), r"correct its options .*unrecognized configuration parameter"),
    ],
)
async def test_what_does_not_mend_itself_is_refused_at_the_start_without_showing_the_password(
    url: str, postgres: Postgres, change: tuple[str, str], reason: str
) -> None:
    if "latin" in change[1]:
        with postgres.connect() as connection:
            connection.execute("CREATE DATABASE latin ENCODING 'LATIN1' TEMPLATE template0")
    with pytest.raises(StoreError, match=reason) as raised:
        await store_at(url.replace(*change, 1)).open()
    assert not isinstance(raised.value, StoreUnavailableError)
    assert has_no_secret(raised.value)
    assert "\n" not in str(raised.value)


async def test_a_user_without_rights_is_refused_and_told_which(postgres: Postgres) -> None:
    url = postgres.fresh_url()
    schema = url.rpartition("%3D")[2]
    with postgres.connect() as connection:
        connection.execute(f"CREATE ROLE guest_{schema} LOGIN PASSWORD '{PASSWORD}'")
        connection.execute(f"GRANT USAGE ON SCHEMA {schema} TO guest_{schema}")
    with pytest.raises(StoreError, match=r"denies us a right: GRANT the user USAGE and CREATE .*permission denied"):
        await store_at(postgres.url(schema=schema, user=f"guest_{schema}")).open()


async def test_a_server_that_is_away_is_unavailable_and_no_error_shows_the_password(own_postgres: Postgres) -> None:
    url = own_postgres.fresh_url()
    own_postgres.crash()
    with pytest.raises(
        StoreUnavailableError, match=r"can't be reached: check host and port .*Connection ref"
    ) as raised:
        await store_at(url).open()
    assert has_no_secret(raised.value)
    with pytest.raises(StoreUnavailableError, match=r"can't be reached: .*resolve"):
        await store_at(url.replace("127.0.0.1", "nowhere.invalid")).open()


@pytest.mark.parametrize(
    ("error", "lasting", "says"),
    [
        (psycopg.OperationalError('FATAL:  role "mkf" does not exist'), True, "does not let us in"),
        (psycopg.OperationalError("FATAL:  no pg_hba.conf entry for host"), True, "does not let us in"),
        (psycopg.OperationalError("fe_sendauth: no password supplied"), True, "does not let us in"),
        (psycopg.OperationalError("FATAL:  the database system is starting up"), False, "can't be reached"),
        (psycopg.OperationalError("FATAL:  sorry, too many clients already"), False, "has no connection left"),
        (psycopg.OperationalError("session is read-only"), False, "is read-only"),
        (psycopg.OperationalError("FATAL:  Datenbank »mkf« existiert nicht"), False, "can't be reached"),
        (psycopg.errors.DiskFull("could not extend file"), False, "has no room: the server's disk is full"),
        (psycopg.errors.TooManyConnections("no more"), False, "has no connection left"),
        (psycopg.errors.AdminShutdown("terminating connection"), False, "can't be reached"),
        (psycopg.errors.InvalidSchemaName("no schema has been selected"), True, "has no schema to use"),
        (psycopg.errors.DeadlockDetected("deadlock detected"), False, "does not work; see what Postgres says"),
        (psycopg.InternalError("lost synchronization"), False, "does not work; see what Postgres says"),
    ],
)
def test_an_error_of_the_server_says_what_to_do_and_whether_it_is_worth_waiting(
    error: psycopg.Error, lasting: bool, says: str
) -> None:
    server = PostgresServer(make_url("postgresql+psycopg://mkf:s3cret@db:5432/mkf"))
    meaning = server.meaning(error, opening=True)
    assert type(meaning) is (StoreError if lasting else StoreUnavailableError)
    assert str(meaning).startswith(f"the store postgresql://db:5432/mkf {says}")
    assert str(error) in str(meaning).replace("FATAL: ", "FATAL:  ")
    assert "s3cret" not in str(meaning)
    assert type(server.meaning(error, opening=False)) is StoreUnavailableError


async def test_tls_checks_the_server_s_certificate_as_the_url_says(tmp_path: Path) -> None:
    authority, stranger = trustme.CA(), trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    stranger.cert_pem.write_to_path(tmp_path / "stranger.pem")
    certificate = authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.bytes()
    with Postgres(certificate=certificate) as server:
        url = server.fresh_url()
        store = store_at(f"{url}&sslmode=verify-full&sslrootcert={tmp_path}/ca.pem")
        await store.open()
        used = await store._read(
            lambda transaction: transaction.connection().exec_driver_sql(
                "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()"
            )
        )
        assert used.scalar_one() is True
        await store.close()
        elsewhere = url.replace("127.0.0.1", "localhost")
        for wrong in (f"{url}&sslrootcert={tmp_path}/stranger.pem", f"{elsewhere}&sslrootcert={tmp_path}/ca.pem"):
            with pytest.raises(StoreError, match=r"can't be used over TLS .*certificate") as raised:
                await store_at(f"{wrong}&sslmode=verify-full").open()
            assert not isinstance(raised.value, StoreUnavailableError)
            assert has_no_secret(raised.value)


async def test_a_url_that_names_postgres_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(StoreError, match=r"needs psycopg: install mqtt-kafka-forwarder\[postgres\]"):
        await store_at("postgres://mkf@localhost/mkf").open()


def test_a_store_in_sqlite_does_not_load_what_postgres_needs(tmp_path: Path) -> None:
    program = (
        "import asyncio, sys; from server.store.store import Store; from server.store.lock import lock_at\n"
        f"url = 'sqlite:///{tmp_path}/store.db'; lock = lock_at(url)\n"
        "store = Store(url, client_id_of=lambda _: '', lock=lock)\n"
        "asyncio.run(store.open()); asyncio.run(lock.try_acquire()); asyncio.run(store.close())\n"
        "print([name for name in sys.modules if name.startswith(('psycopg', 'server.store.postgres'))])"
    )
    said = subprocess.check_output([sys.executable, "-c", program], text=True, cwd=_ROOT)
    assert said == "[]\n"


# --- what is stored ---------------------------------------------------------------------------------------------------


async def test_times_are_utc_whatever_the_session_s_time_zone(postgres: Postgres) -> None:
    url = postgres.fresh_url() + "%20-ctimezone%3DAsia/Tokyo"
    store = store_at(url)
    await store.open()
    before = datetime.now(UTC)
    created = await store.create(mapping())
    found = await store.mapping("demo")
    assert found == created
    assert before <= found.created_at <= datetime.now(UTC)
    assert found.created_at.tzinfo is UTC
    await store.close()


async def test_two_stores_that_write_at_once_lose_no_change(store: Store, url: str) -> None:
    other = store_at(url)
    await other.open()
    await store.create(mapping())

    def turn(spec: Mapping) -> Mapping:
        return spec.model_copy(update={"wrap_as_json": not spec.wrap_as_json})

    async def many(writer: Store) -> None:
        for _ in range(10):
            await writer.change("demo", turn, expected=None, action="change")

    await asyncio.gather(many(store), many(other))
    assert (await store.mapping("demo")).generation == 21
    ids = [each.id for each in await store.events(limit=100)]
    assert ids == sorted(ids, reverse=True)
    assert [each.detail["generation"] for each in await store.events(limit=100)] == list(range(21, 0, -1))
    await other.close()


# --- trouble ----------------------------------------------------------------------------------------------------------


async def test_a_statement_that_takes_too_long_is_ended_by_the_server_and_the_connection_stays(store: Store) -> None:
    before = await backend(store)
    with pytest.raises(StoreUnavailableError, match=r"did not answer within 1 s; check its server"):
        await store._run(lambda transaction: transaction.connection().execute(_ENDLESS), writing=True, limit=1)
    assert await backend(store) == before
    assert (await store.create(mapping())).generation == 1


async def test_a_lock_that_another_session_holds_is_waited_for_and_then_said(
    store: Store, url: str, postgres: Postgres
) -> None:
    with postgres.connect() as other, other.transaction():
        other.execute(f"LOCK TABLE {url.rpartition('%3D')[2]}.heartbeat")
        began = time.monotonic()
        with pytest.raises(StoreUnavailableError, match="is locked by another session: see pg_locks"):
            await store.ping()
        assert time.monotonic() - began < 5, "the other session holds it for ever"
    await store.ping()


async def test_a_read_only_server_says_so(store: Store) -> None:
    def only_read(transaction: Transaction) -> None:
        transaction.connection().exec_driver_sql("SET TRANSACTION READ ONLY")
        transaction.connection().exec_driver_sql("UPDATE heartbeat SET id = 1")

    with pytest.raises(StoreUnavailableError, match="is read-only, perhaps a standby: name the primary"):
        await store._write(only_read)


async def test_a_connection_that_broke_is_replaced_at_the_next_call(store: Store, postgres: Postgres) -> None:
    pid = await backend(store)
    with postgres.connect() as admin:
        admin.execute("SELECT pg_terminate_backend(%s)", (pid,))
    assert (await store.create(mapping())).generation == 1
    assert await backend(store) != pid


async def test_a_transaction_whose_connection_breaks_changes_nothing(store: Store, postgres: Postgres) -> None:
    await store.create(mapping())

    def broken(spec: Mapping) -> Mapping:
        with postgres.connect() as admin:
            admin.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'mkf pid%'"
            )
        return pause(spec)

    with pytest.raises(StoreUnavailableError, match="can't be reached") as raised:
        await store.change("demo", broken, expected=1, action="pause")
    assert "may have been made" not in str(raised.value)
    assert "nothing was written" in str(of_store_error(raised.value).detail)
    assert (await store.mapping("demo")).generation == 1


async def test_a_server_that_hangs_keeps_nobody_waiting_and_all_is_well_when_it_goes_on(
    breakable: Store, own_postgres: Postgres
) -> None:
    own_postgres.freeze()
    for call in (breakable.ping, breakable.mappings, breakable.ping):
        began = time.monotonic()
        with pytest.raises(StoreUnavailableError):
            await call()
        assert time.monotonic() - began < 5, "the server hangs for ever"
    own_postgres.thaw()
    await _recovered(breakable)
    assert [each.spec.name for each in await breakable.mappings()] == ["demo"]


async def test_a_server_that_crashes_is_unavailable_until_it_is_back(breakable: Store, own_postgres: Postgres) -> None:
    own_postgres.crash()
    with pytest.raises(StoreUnavailableError, match="can't be reached") as raised:
        await breakable.ping()
    assert has_no_secret(raised.value)
    own_postgres.start()
    await _recovered(breakable)
    assert (await breakable.change("demo", pause, expected=1, action="pause")).generation == 2


async def test_a_commit_without_an_answer_is_said_to_be_open_and_the_next_call_waits_for_what_became_of_it(
    breakable: Store, own_postgres: Postgres
) -> None:
    assert breakable._open is not None
    database = breakable._open[0]
    assert isinstance(database, PostgresDatabase)
    event.listen(database._engine, "commit", lambda _: own_postgres.freeze(), once=True)
    with pytest.raises(StoreUnavailableError, match="may have been made: read it again; check its server") as raised:
        await breakable.change("demo", pause, expected=1, action="pause")
    assert "nothing was written" not in str(of_store_error(raised.value).detail), "the API would not know either"
    own_postgres.thaw()
    await _recovered(breakable)
    # The server had the commit already when it froze.
    assert (await breakable.mapping("demo")).generation == 2


async def _recovered(store: Store) -> None:
    """Wait until the store answers again."""
    async with asyncio.timeout(20):
        while True:
            try:
                await store.ping()
            except StoreUnavailableError:
                await asyncio.sleep(0.05)
            else:
                return


# --- the lock ---------------------------------------------------------------------------------------------------------


@pytest.fixture
async def lock(url: str) -> AsyncIterator[Any]:
    lock = lock_at(url)
    assert await lock.try_acquire()
    yield lock
    await lock.release()


async def test_only_one_holds_the_lock_and_the_other_is_told_who(lock: Any, url: str, postgres: Postgres) -> None:
    assert await lock.try_acquire(), "asking again changes nothing"
    await lock.check()
    second, elsewhere = lock_at(url), lock_at(postgres.fresh_url())
    assert not await second.try_acquire()
    assert (await second.holder()).startswith("mkf pid ")
    assert (await second.holder()).endswith(" at 127.0.0.1")
    assert await elsewhere.try_acquire(), "another schema is another store"
    await lock.release()
    await lock.release()
    async with asyncio.timeout(5):  # the server hears of a session's end a moment later
        while not await second.try_acquire():
            pass
    for each in (second, elsewhere):
        await each.release()


async def test_a_lock_whose_session_breaks_is_lost_and_can_be_taken_again(lock: Any, postgres: Postgres) -> None:
    with postgres.connect() as admin:
        admin.execute("SELECT pg_terminate_backend(%s)", (lock._own[0],))
    with pytest.raises(StoreUnavailableError, match="can't be reached"):
        await lock.check()
    assert await lock.try_acquire()
    await lock.check()


async def test_a_session_of_ours_that_the_server_still_believes_in_does_not_keep_us_out(lock: Any) -> None:
    former, lock._session = lock._session, None
    assert await lock.try_acquire()
    with pytest.raises(psycopg.OperationalError):
        former.connection.execute("SELECT 1")
    former.close()


async def test_nothing_is_written_while_the_lock_is_not_held(lock: Any, url: str, postgres: Postgres) -> None:
    store = store_at(url, lock=lock)
    await store.open()
    await store.create(mapping())
    with postgres.connect() as admin:
        admin.execute("SELECT pg_terminate_backend(%s)", (lock._own[0],))
    other = lock_at(url)
    assert await other.try_acquire()
    # Not even before this process has noticed.
    with pytest.raises(StoreUnavailableError, match="is not this process's at the moment: its lock was lost"):
        await store.change("demo", pause, expected=1, action="pause")
    assert (await store.mapping("demo")).generation == 1
    await other.release()
    with pytest.raises(StoreUnavailableError):
        await lock.check()
    assert await lock.try_acquire()
    assert (await store.change("demo", pause, expected=1, action="pause")).generation == 2
    await store.close()


async def test_a_lock_that_can_not_be_had_says_why(postgres: Postgres, own_postgres: Postgres) -> None:
    with pytest.raises(StoreError, match="does not let us in") as raised:
        await lock_at(postgres.url().replace("canary", "wrong")).try_acquire()
    assert has_no_secret(raised.value)
    assert not isinstance(raised.value, StoreUnavailableError)
    lock = lock_at(own_postgres.url())
    own_postgres.freeze()
    with pytest.raises(StoreUnavailableError):
        await lock.try_acquire()
    own_postgres.thaw()
    await lock.release()


async def test_a_server_that_hangs_loses_the_lock_within_its_limit(own_postgres: Postgres) -> None:
    lock = lock_at(own_postgres.url())
    assert await lock.try_acquire()
    own_postgres.freeze()
    with pytest.raises(StoreUnavailableError, match="did not answer within 2 s"):
        await lock.check()
    own_postgres.thaw()
    async with asyncio.timeout(20):
        while True:
            try:
                assert await lock.try_acquire()
            except StoreUnavailableError:
                await asyncio.sleep(0.05)
            else:
                break
    await lock.release()


async def test_a_pooler_that_shares_sessions_is_refused(url: str) -> None:
    with patch.object(psycopg.ConnectionInfo, "backend_pid", 1):
        lock = lock_at(url)
        with pytest.raises(StoreUnavailableError, match="does not keep our lock: a connection pooler"):
            await lock.try_acquire()
        await lock.release()


@pytest.mark.parametrize("name", ["none", "a\0b"])
async def test_a_name_that_no_mapping_can_have_is_not_found(database_url: str, name: str) -> None:
    store = store_at(database_url)
    await store.open()
    with pytest.raises(MappingNotFoundError):
        await store.mapping(name)
    await store.close()


async def test_texts_come_back_as_they_were(database_url: str) -> None:
    store = store_at(database_url)
    await store.open()
    spec = mapping("Ä/'\"%s:x", kafka={"topic": "demo", "key": "a\0b", "headers": {"h\0": "\U0001f600 \\u0000"}})
    created = await store.create(spec)
    assert (await store.mapping(spec.name)) == created
    assert created.spec == spec
    assert (await store.events(limit=1))[0].mapping == spec.name
    await store.close()
