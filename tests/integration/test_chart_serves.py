"""What the chart renders runs: its configuration and environment start the service, and its probes are answered."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from tests.chart.rendering import SETS, container, of_kind, rendered, secret_text, the
from tests.devices import publish
from tests.service import Service

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from tests.brokers import KafkaCluster, MqttBroker


def unpacked(things: list[dict[str, Any]], folder: Path) -> dict[str, str]:
    """Write what the pod's Secrets would be as files; return its environment, with their names here."""
    env = {each["name"]: each["value"] for each in container(the(things, "StatefulSet"))["env"] if "value" in each}
    for secret in of_kind(things, "Secret"):
        for key in secret["data"]:
            (folder / key).write_text(secret_text(secret, key))
    for name, file in (("CONFIG_FILE", "config.yaml"), ("MKF_ADMIN_TOKEN_FILE", "admin-token")):
        assert env[name].endswith(f"/{file}")
        env[name] = str(folder / file)
    return env


@pytest.mark.parametrize("values", ["minimal", "seed"])
async def test_the_rendered_configuration_starts_the_service_and_its_probes_are_answered(  # noqa: PLR0917 - fixtures
    values: str,
    tmp_path: Path,
    mosquitto: MqttBroker,
    kafka: KafkaCluster,
    kafka_topic: Callable[..., Awaitable[str]],
    unique: str,
) -> None:
    topic = await kafka_topic("chart")
    config = yaml.safe_load(yaml.safe_load(SETS[values].read_text())["config"])
    config["mqtt"] |= {"host": mosquitto.host, "port": mosquitto.port, "client_id": f"chart-{unique}"}
    config["kafka"] |= {"bootstrap_server": kafka.host, "port": kafka.port}
    (mapping,) = config["forwarding"]
    mapping["mqtt"]["topic"], mapping["kafka"]["topic"] = f"{unique}/#", topic
    own = tmp_path / "values.yaml"
    own.write_text(yaml.safe_dump({"config": yaml.safe_dump(config)}))
    things = rendered(SETS[values], "--values", str(own))
    pod = tmp_path / "pod"
    pod.mkdir()
    env = unpacked(things, pod)
    checked = subprocess.run(
        [sys.executable, "-m", "server.cli", "validate", env["CONFIG_FILE"]],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert checked.returncode == 0, checked.stderr
    service = Service(tmp_path / "service", mqtt_broker=mosquitto, kafka_broker=kafka, env=env)
    service.api.headers["authorization"] = f"Bearer {(pod / 'admin-token').read_text()}"
    async with service:
        await service.wait_ready()
        await service.wait_state(mapping["name"])
        await publish(mosquitto.host, mosquitto.port, [(f"{unique}/a", b"1")])
        await service.wait_status(mapping["name"], lambda status: status["counters"]["delivered"] == 1, "delivered")
        forwarder = container(the(things, "StatefulSet"))
        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            assert (await service.api.get(forwarder[probe]["httpGet"]["path"])).status_code == 200
        assert await service.sigterm() == 0
    assert [record.value for record in await kafka.read_all(topic)] == [b"1"]
