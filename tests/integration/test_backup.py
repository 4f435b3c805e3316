"""Back up and restore as docs/deploying.md says: its own command, while the service runs."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from tests.devices import publish
from tests.service import Service

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tests.brokers import KafkaCluster, MqttBroker

GUIDE = (Path(__file__).parents[2] / "docs/deploying.md").read_text()


def backup_script(folder: Path) -> str:
    """The guide's Python, as the shell passes it on, with the volume at `folder`."""
    (script,) = re.findall(r'-- python3 -c "(.*)"$', GUIDE, re.MULTILINE)
    return str(script).replace("/data/", f"{folder}/")


async def test_a_backup_made_while_it_runs_brings_back_what_the_api_had_made(
    tmp_path: Path,
    mosquitto: MqttBroker,
    kafka: KafkaCluster,
    kafka_topic: Callable[..., Awaitable[str]],
    unique: str,
) -> None:
    topic = await kafka_topic("backup")
    service = Service(tmp_path, mqtt_broker=mosquitto, kafka_broker=kafka, client_id=f"backup-{unique}")
    mapping = {"name": "m", "mqtt": {"topic": f"{unique}/#"}, "kafka": {"topic": topic}}
    async with service:
        await service.wait_ready()
        assert (await service.api.post("/api/v1/mappings", json=mapping)).status_code == 201
        await service.wait_state("m")
        subprocess.run([sys.executable, "-c", backup_script(tmp_path)], timeout=60, check=True)
        assert (await service.api.delete("/api/v1/mappings/m")).status_code == 204
        assert await service.sigterm() == 0
        for rest in tmp_path.glob("mkf.db*"):
            rest.unlink()
        shutil.move(tmp_path / "backup.db", tmp_path / "mkf.db")
        service.start()
        await service.wait_ready()
        await service.wait_state("m")
        await publish(mosquitto.host, mosquitto.port, [(f"{unique}/a", b"1")])
        await service.wait_status("m", lambda status: status["counters"]["delivered"] == 1, "delivered")
        assert await service.sigterm() == 0
    assert [record.value for record in await kafka.read_all(topic)] == [b"1"]
