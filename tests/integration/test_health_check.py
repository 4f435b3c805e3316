"""What asks the service from outside whether it lives, also over TLS: the image's health check, and `helm test`."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from tests.brokers import KafkaCluster, MqttBroker, free_port
from tests.brokers.secure import Authority
from tests.chart.rendering import CHART, SETS, of_kind, rendered
from tests.service import READY_TIMEOUT, Service

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

TOKEN = "0123456789abcdef" * 4
DOCKERFILE = (Path(__file__).parents[2] / "Dockerfile").read_text()


def health_check(**env: str) -> int:
    """The exit code of the Dockerfile's HEALTHCHECK."""
    (command,) = re.findall(r"^HEALTHCHECK .*\\\n +CMD (\[.*\])$", DOCKERFILE, re.MULTILINE)
    python, *arguments = json.loads(command)
    assert python == "python3"
    return subprocess.run([sys.executable, *arguments], env={**os.environ, **env}, timeout=60, check=False).returncode


def helm_test(**env: str) -> int:
    """The exit code of what the chart's test runs in its pod."""
    (pod,) = of_kind(rendered(SETS["minimal"]), "Pod")
    (test,) = pod["spec"]["containers"]
    python, *options = test["command"]
    assert python == "python3"
    command = [sys.executable, *options, *test["args"]]
    return subprocess.run(command, env={**os.environ, **env}, timeout=60, check=False).returncode


@asynccontextmanager
async def running(folder: Path, **env: str) -> AsyncIterator[Service]:
    """Run a service without brokers, for they are not asked about; gives it once it listens."""
    service = Service(
        folder,
        mqtt_broker=MqttBroker("127.0.0.1", free_port()),
        kafka_broker=KafkaCluster(f"127.0.0.1:{free_port()}"),
        env=env,
    )
    async with service:
        if "MKF_TLS_CERT" not in env:
            await service.wait_ready()
        yield service


async def passes(service: Service, what: str, check: Callable[[], int]) -> None:
    """Wait until a check passes; fails at once if the service ends."""
    await asyncio.to_thread(service.wait_until, lambda: check() == 0, timeout=READY_TIMEOUT, what=what)


async def test_the_health_check_passes_while_the_service_lives(tmp_path: Path) -> None:
    async with running(tmp_path) as service:
        port = str(service.port)
        assert health_check(MKF_PORT=port) == 0
        assert await service.sigterm() == 0
    assert health_check(MKF_PORT=port) != 0


async def test_helm_test_passes_only_while_the_service_answers_to_its_token(tmp_path: Path) -> None:
    async with running(tmp_path, MKF_ADMIN_TOKEN=TOKEN) as service:
        assert helm_test(URL=service.url, TOKEN=TOKEN) == 0
        assert helm_test(URL=service.url, TOKEN=f"{TOKEN}x") != 0
        assert await service.sigterm() == 0
    assert helm_test(URL=service.url, TOKEN=TOKEN) != 0


async def test_helm_test_fails_if_the_service_asks_for_no_token_although_there_is_one(tmp_path: Path) -> None:
    async with running(tmp_path, MKF_AUTH="none") as service:
        assert helm_test(URL=service.url) == 0
        assert helm_test(URL=service.url, TOKEN=TOKEN) != 0


async def test_both_ask_by_tls_if_that_is_what_the_service_speaks(tmp_path: Path) -> None:
    # For the name that clients use; 127.0.0.1 and the Service's name are others.
    files = Authority(tmp_path).issue("api", "forwarder.example")
    tls = {"MKF_TLS_CERT": str(files.cert), "MKF_TLS_KEY": str(files.key)}
    async with running(tmp_path / "service", MKF_ADMIN_TOKEN=TOKEN, **tls) as service:
        await passes(service, "HEALTHCHECK passes", lambda: health_check(MKF_PORT=str(service.port), **tls))
        await passes(
            service, "helm test passes", lambda: helm_test(URL=f"https://127.0.0.1:{service.port}", TOKEN=TOKEN)
        )
        assert health_check(MKF_PORT=str(service.port)) != 0


def test_helm_test_s_script_is_the_file() -> None:
    (pod,) = of_kind(rendered(SETS["minimal"]), "Pod")
    assert pod["spec"]["containers"][0]["args"] == [(CHART / "files/answers.py").read_text()]
