"""The image, once `make image` has built it: small, not root, and running with a root that can't be written."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.devices import publish
from tests.service import Service

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tests.brokers import KafkaCluster, MqttBroker

IMAGE = os.environ.get("MKF_TEST_IMAGE")
pytestmark = pytest.mark.skipif(IMAGE is None, reason="`make image` builds the image and runs this")
FOLDER = Path(IMAGE or ".").resolve()
ROOT = FOLDER / "root"
# As a container engine would: the image's files read-only, a volume at /data, the file from outside, its own user.
ENTER = """
set -e
mount --make-rprivate /
mount --bind "$1" "$1"
mount -o remount,bind,ro "$1"
mount --rbind /dev "$1/dev"
mount --bind "$2/data" "$1/data"
mount --bind "$2" "$1/forwarding-service"
root="$1" user="$3"
shift 3
exec chroot --userspec="$user" "$root" /usr/bin/env --chdir=/forwarding-service "$@"
"""


def config() -> dict[str, Any]:
    """The image's configuration."""
    loaded: dict[str, Any] = json.loads((FOLDER / "config.json").read_text())
    return loaded


def environment() -> dict[str, str]:
    """The image's environment."""
    return dict(each.split("=", 1) for each in config()["Env"])


def inside(folder: Path, *command: str) -> list[str]:
    """The command that runs another as the image's user, with the image's files; `folder` is where the file lies."""
    enter = ["unshare", "--mount", "sh", "-c", ENTER, "sh", str(ROOT), str(folder), config()["User"]]
    return [*enter, *(f"{name}={value}" for name, value in environment().items()), *command]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with a volume that belongs to the image's user."""
    (tmp_path / "data").mkdir()
    shutil.chown(tmp_path / "data", *(int(number) for number in config()["User"].split(":")))
    # pytest's folders are for their owner only.
    for parent in (tmp_path, *tmp_path.parents):
        if parent.stat().st_uid == os.getuid() and parent.is_relative_to(Path("/tmp")) and parent != Path("/tmp"):  # noqa: S108
            parent.chmod(0o755)
    return tmp_path


def test_it_is_small() -> None:
    assert int((FOLDER / "compressed-bytes").read_text()) < 150_000_000


def test_it_says_what_it_is() -> None:
    labels = config()["Labels"]
    assert labels["org.opencontainers.image.title"] == "mqtt-kafka-forwarder"
    assert labels["org.opencontainers.image.licenses"] == "Apache-2.0"
    assert re.fullmatch(r"\d+\.\d+\.\d+", labels["org.opencontainers.image.version"])
    assert re.fullmatch(r"[0-9a-f]{40}", labels["org.opencontainers.image.revision"])


def test_it_runs_mkf_itself_as_a_number_that_is_not_root() -> None:
    assert re.fullmatch(r"[1-9]\d+:[1-9]\d+", config()["User"])
    assert (config()["Entrypoint"], config()["Cmd"]) == (["mkf"], ["serve"])
    assert config()["StopSignal"] == "SIGTERM"


def test_neither_tests_nor_tools_nor_the_demo_are_in_it() -> None:
    packages = ROOT / "opt/mkf/lib/python3.11/site-packages"
    assert (packages / "server/store/migrations/env.py").is_file()
    for absent in ("tests", "loadtest", "pytest", "mypy", "iotcore", "server/demo", "pip", "uv"):
        assert not (packages / absent).exists(), absent
    assert not (ROOT / "opt/uv").exists()
    assert not (ROOT / "src").exists()


async def test_it_serves_with_a_root_that_can_t_be_written(
    folder: Path,
    mosquitto: MqttBroker,
    kafka: KafkaCluster,
    kafka_topic: Callable[..., Awaitable[str]],
    unique: str,
) -> None:
    topic = await kafka_topic("image")
    service = Service(
        folder,
        mqtt_broker=mosquitto,
        kafka_broker=kafka,
        client_id=f"image-{unique}",
        forwarding=[{"name": "m", "mqtt": {"topic": f"{unique}/#"}, "kafka": {"topic": topic}}],
    )
    own = {"MKF_HOST": "127.0.0.1", "MKF_PORT": str(service.port)}
    variables = [f"{name}={value}" for name, value in own.items()]
    service._command = inside(folder, *variables, *config()["Entrypoint"])
    healthy = inside(folder, *variables, *config()["Healthcheck"]["Test"][1:])
    async with service:
        await service.wait_ready()
        await service.wait_state("m")
        await publish(mosquitto.host, mosquitto.port, [(f"{unique}/a", b"1")])
        await service.wait_status("m", lambda status: status["counters"]["delivered"] == 1, "delivered")
        assert subprocess.run(healthy, timeout=60, check=False).returncode == 0
        assert await service.sigterm() == 0
    assert subprocess.run(healthy, timeout=60, capture_output=True, check=False).returncode != 0
    assert [record.value for record in await kafka.read_all(topic)] == [b"1"]
    assert (folder / "data/mkf.db").stat().st_uid == int(config()["User"].split(":")[0])
    assert not list(ROOT.glob("**/mkf.db"))


def test_nothing_but_the_volume_can_be_written(folder: Path) -> None:
    script = (
        "for at in /data /forwarding-service /opt/mkf /tmp /etc; do touch $at/x 2>/dev/null && echo $at; done; true"
    )
    done = subprocess.run(inside(folder, "sh", "-c", script), capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == ["/data"]
