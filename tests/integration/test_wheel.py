"""The wheel: installed in an empty environment, far from the checkout, it serves, and brings what it needs along."""

from __future__ import annotations

import os
import subprocess
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.devices import publish
from tests.service import Service

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tests.brokers import KafkaCluster, MqttBroker

ROOT = Path(__file__).parents[2]


def said(*command: str | Path, cwd: Path = ROOT) -> str:
    """What a command prints; without what the tests' own environment would add."""
    env = {name: value for name, value in os.environ.items() if name not in {"VIRTUAL_ENV", "PYTHONPATH"}}
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=150, check=False)
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a wheel of this checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    uv = said("sh", "scripts/ensure-uv.sh").strip()
    said(uv, "build", "--quiet", "--wheel", "--out-dir", folder)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def mkf(wheel: Path) -> Path:
    """Return `mkf` in an environment with nothing but the wheel, and its dependencies as they are locked."""
    uv, folder = said("sh", "scripts/ensure-uv.sh").strip(), wheel.parent
    locked = folder / "locked.txt"
    locked.write_text(said(uv, "export", "--quiet", "--frozen", "--no-dev", "--no-emit-project", "--no-hashes"))
    said(uv, "venv", "--quiet", folder / "venv")
    python = folder / "venv/bin/python"
    said(uv, "pip", "install", "--quiet", "--python", python, "--constraint", locked, wheel)
    return folder / "venv/bin/mkf"


def test_the_wheel_holds_the_service_its_migrations_and_the_licence_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert "server/store/migrations/env.py" in names
    assert "server/store/migrations/versions/v0001_first_tables.py" in names
    assert any(name.endswith("/licenses/LICENSE") for name in names)
    assert {name.split("/")[0].partition("-")[0] for name in names} == {"server", "mqtt_kafka_forwarder"}


def test_it_validates_a_file_anywhere(mkf: Path, tmp_path: Path) -> None:
    said(mkf, "validate", ROOT / "config.yaml", cwd=tmp_path)


async def test_it_serves_and_forwards(  # noqa: PLR0917 - pytest passes fixtures by name
    mkf: Path,
    tmp_path: Path,
    mosquitto: MqttBroker,
    kafka: KafkaCluster,
    kafka_topic: Callable[..., Awaitable[str]],
    unique: str,
) -> None:
    topic = await kafka_topic("wheel")
    service = Service(
        tmp_path,
        mqtt_broker=mosquitto,
        kafka_broker=kafka,
        client_id=f"wheel-{unique}",
        forwarding=[{"name": "m", "mqtt": {"topic": f"{unique}/#"}, "kafka": {"topic": topic}}],
        command=[str(mkf)],
    )
    async with service:
        await service.wait_ready()
        await service.wait_state("m")
        await publish(mosquitto.host, mosquitto.port, [(f"{unique}/a", b"1")])
        await service.wait_status("m", lambda status: status["counters"]["delivered"] == 1, "delivered")
        assert await service.sigterm() == 0
    assert [record.value for record in await kafka.read_all(topic)] == [b"1"]
