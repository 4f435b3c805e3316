"""The service with its store in Postgres: it starts, changes, restarts, outlives outages of it, and stays one."""

from __future__ import annotations

import asyncio
import re
import shlex
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import httpx
import pytest

from server.core.mapping import Mapping
from server.store.store import Store
from tests.brokers.postgres import PASSWORD, program
from tests.forwarding import edit, pause

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.brokers import Postgres
    from tests.forwarding import Stage
    from tests.service import Service

_GUIDE = Path(__file__).parents[2] / "docs" / "operating.md"


@pytest.fixture
def protocol() -> str:
    """Return one version of MQTT: the store is the same for both."""
    return "5"


async def unready(service: Service, reason: str = "") -> str:
    """Wait until /readyz says no, with this in its reasons; returns them."""
    async with asyncio.timeout(30):
        while True:
            try:
                response = await service.api.get("/readyz")
            except httpx.TransportError:
                await asyncio.sleep(0.05)
                continue
            said = " ".join(response.json()["reasons"])
            if response.status_code == 503 and reason in said:
                return said
            await asyncio.sleep(0.05)


async def arrived(stage: Stage, topic: str, count: int) -> None:
    """Wait until Kafka has so many; nothing of the service is asked, which may not answer."""
    async with asyncio.timeout(60):
        while sum((await stage.kafka.end_offsets(topic)).values()) < count:
            await asyncio.sleep(0.1)


async def has_no_secret(service: Service) -> bool:
    """Whether neither the log nor an answer shows the store's password."""
    answers = [await service.api.get(path) for path in ("/readyz", "/metrics", "/api/v1/mappings", "/api/v1/events")]
    shown = service.log_path.read_text() + "".join(answer.text for answer in answers)
    return PASSWORD not in shown and quote(PASSWORD, safe="") not in shown


async def test_it_starts_changes_restarts_and_forwards_on_while_the_server_is_away(
    stage: Stage, own_postgres: Postgres
) -> None:
    topic = await stage.kafka_topic()
    traffic = stage.traffic(topics=10)
    env = {"MKF_DATABASE_URL": own_postgres.fresh_url()}
    async with stage.running(stage.mapping(topic), env=env) as service:
        await traffic.burst(500)
        await edit(service, {"mqtt": {"topic": [f"{stage.unique}/#", f"other-{stage.unique}/#"]}})
        await pause(service)
        assert await service.sigterm() == 0
        service.start()
        await service.wait_ready()
        status = await service.wait_state("m", "paused")
        assert status["generation"] == 3, "what the API made of it is stored"
        await service.api.post("/api/v1/mappings/m/resume")
        await service.wait_state("m")

        own_postgres.crash()
        assert "the store does not answer" in await unready(service)
        await traffic.burst(500)
        await arrived(stage, topic, len(traffic.published))
        assert (await service.api.get("/healthz/forwarding")).status_code == 200
        assert (await service.api.get("/api/v1/mappings")).status_code == 503
        own_postgres.start()
        await service.wait_ready()
        assert (await stage.outcome(service, topic, traffic.published)).problems() == []
        assert (await service.status("m"))["counters"]["reconnects"] == 0, "it ran through"
        await pause(service)
        assert await has_no_secret(service)
    assert "Traceback" not in service.log_path.read_text()


async def test_a_server_that_is_frozen_does_not_keep_the_service_from_forwarding_or_from_ending(
    stage: Stage, own_postgres: Postgres
) -> None:
    topic = await stage.kafka_topic()
    traffic = stage.traffic(topics=10)
    async with stage.running(stage.mapping(topic), env={"MKF_DATABASE_URL": own_postgres.fresh_url()}) as service:
        own_postgres.freeze()
        assert "the store does not answer" in await unready(service)
        await traffic.burst(500)
        await arrived(stage, topic, len(traffic.published))
        assert await service.sigterm() == 0
        own_postgres.thaw()


async def test_a_server_that_comes_later_is_waited_for_and_a_wrong_password_is_not(
    stage: Stage, own_postgres: Postgres
) -> None:
    topic = await stage.kafka_topic()
    url = own_postgres.fresh_url()
    own_postgres.crash()
    async with stage.service(stage.mapping(topic), env={"MKF_DATABASE_URL": url}) as service:
        reasons = await unready(service, "the store can't be opened")
        assert "can't be reached: check host and port" in reasons
        own_postgres.start()
        await service.wait_ready()
        await service.wait_state("m")
        assert await has_no_secret(service)
    wrong = stage.service(name="wrong", env={"MKF_DATABASE_URL": url.replace("canary", "wrong")})
    async with wrong:
        assert await asyncio.to_thread(wrong.wait, 60) == 2
    said = wrong.log_path.read_text()
    assert "does not let us in: check user, password and database in the store's URL" in said
    assert "Traceback" not in said
    assert quote(PASSWORD.replace("canary", "wrong"), safe="") not in said


async def test_a_second_process_on_the_same_store_waits_and_takes_over(stage: Stage, postgres: Postgres) -> None:
    topic = await stage.kafka_topic()
    traffic = stage.traffic(topics=10)
    env = {"MKF_DATABASE_URL": postgres.fresh_url()}
    async with (
        stage.running(stage.mapping(topic), env=env) as first,
        stage.service(stage.mapping(topic), name="second", env=env) as second,
    ):
        reasons = await unready(second, "the store is in use by another process")
        assert f"pid {first.pid} on " in reasons
        await traffic.burst(500)
        assert (await stage.outcome(first, topic, traffic.published)).problems() == []
        first.kill9()
        await second.wait_ready()
        await second.wait_state("m")
        await traffic.burst(500)
        assert (await stage.outcome(second, topic, traffic.published)).problems() == []


async def test_who_loses_the_lock_to_another_stops_says_so_and_comes_back(stage: Stage, postgres: Postgres) -> None:
    topic = await stage.kafka_topic()
    traffic = stage.traffic(topics=10)
    async with stage.running(stage.mapping(topic), env={"MKF_DATABASE_URL": postgres.fresh_url()}) as service:
        with postgres.connect() as admin, postgres.connect() as thief:
            holder = admin.execute(
                "SELECT l.pid, l.classid, l.objid FROM pg_locks l JOIN pg_stat_activity a USING (pid)"
                " WHERE locktype = 'advisory' AND application_name LIKE %s",
                (f"mkf pid {service.pid} on %",),
            ).fetchone()
            assert holder is not None
            pid, *numbers = holder
            taken = threading.Thread(target=lambda: thief.execute("SELECT pg_advisory_lock(%s, %s)", numbers))
            taken.start()
            waiting = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted AND objid = %s"
            while admin.execute(waiting, numbers[1:]).fetchone() != (1,):
                await asyncio.sleep(0.02)
            admin.execute("SELECT pg_terminate_backend(%s)", (pid,))
            taken.join()
            await unready(service, "the store is in use by another process")
            async with asyncio.timeout(30):  # a drain takes its time
                while 'mapping="m"' in (await service.api.get("/metrics")).text:
                    await asyncio.sleep(0.05)
            await traffic.burst(500)
            await asyncio.sleep(1)  # so that it would be there if anything still ran
            assert sum((await stage.kafka.end_offsets(topic)).values()) == 0
        await service.wait_ready()
        await service.wait_state("m")
        assert (await stage.outcome(service, topic, traffic.published)).problems() == []


# --- backing up and restoring, with the very commands of the operating guide ------------------------------------------


def commands(start: str) -> list[str]:
    """Return the commands of the guide that begin like this."""
    lines = re.findall(r"^\$ (.*)$", _GUIDE.read_text(), re.MULTILINE)
    found = [line for line in lines if line.startswith(start)]
    assert found, f"the guide has no command {start!r}"
    return found


def run(command: str, **env: str) -> None:
    """Run a command of the guide, its variables being these and its programs those that are here."""
    words = [re.sub(r"\$(\w+)", lambda name: env[name[1]], word) for word in shlex.split(command)]
    words[0] = sys.executable if words[0] == "python3" else program(words[0])
    subprocess.run(words, check=True, capture_output=True)


@pytest.fixture
def with_a_mapping() -> Callable[[str], Any]:
    async def create(url: str) -> Any:
        store = Store(url, client_id_of=lambda _: "")
        await store.open()
        spec = {"name": "demo", "mqtt": {"topic": "demo/#"}, "kafka": {"topic": "demo"}}
        stored = await store.create(Mapping.model_validate(spec))
        await store.close()
        return stored

    return create


async def content(url: str) -> tuple[Any, Any]:
    store = Store(url, client_id_of=lambda _: "")
    await store.open()
    found = await store.mappings(), await store.events(limit=10)
    await store.close()
    return found


async def test_a_store_in_postgres_can_be_backed_up_and_restored_as_the_guide_says(
    postgres: Postgres, tmp_path: Path, unique: str, with_a_mapping: Callable[[str], Any]
) -> None:
    with postgres.connect() as admin:
        admin.execute(f"CREATE DATABASE old_{unique} TEMPLATE template0")
        admin.execute(f"CREATE DATABASE new_{unique} TEMPLATE template0")
    old, new = (postgres.url(database=f"{age}_{unique}") for age in ("old", "new"))
    stored = await with_a_mapping(old)
    (dump,), (restore,) = commands("pg_dump"), commands("pg_restore")
    names = {"FILE": str(tmp_path / "mkf.dump")}
    run(dump, URL=old.replace("+psycopg", ""), **names)
    run(restore, URL=new.replace("+psycopg", ""), **names)
    assert await content(new) == await content(old)
    assert (await content(new))[0] == [stored]


async def test_a_store_in_sqlite_can_be_backed_up_and_restored_as_the_guide_says(
    tmp_path: Path, with_a_mapping: Callable[[str], Any]
) -> None:
    database, backup = tmp_path / "mkf.db", tmp_path / "backup.db"
    stored = await with_a_mapping(f"sqlite:///{database}")
    with sqlite3.connect(database) as busy:
        busy.execute("BEGIN")
        busy.execute("SELECT * FROM mapping").fetchall()
        (copy,) = commands("python3 -c")
        run(copy.replace("/data/mkf.db", str(database)).replace("/backup/mkf.db", str(backup)))
    busy.close()
    assert (await content(f"sqlite:///{backup}"))[0] == [stored]
