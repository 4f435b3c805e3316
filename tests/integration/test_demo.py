"""`mkf demo` as somebody who tries the project sees it: it starts by itself, shows what flows, and leaves nothing."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import psutil
import pytest

from server.demo.brokers import external
from server.demo.children import DemoError
from server.demo.service import plan
from tests.brokers.process import Child, free_port
from tests.devices import session_exists

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.brokers import KafkaCluster, MqttBroker

FLOWING_TIMEOUT = 60.0
EXIT_TIMEOUT = 40.0
LINE = re.compile(r"published (\d+)  received (\d+)  delivered (\d+)  read back from Kafka (\d+)  ([^\r\n]*)")


@pytest.fixture
def demo(tmp_path: Path) -> Iterator[Child]:
    child = Child("demo", tmp_path / "demo.log")
    yield child
    if child.running:
        child.kill()


def start(demo: Child, **env: str) -> None:
    demo.spawn([sys.executable, "-u", "-m", "server.demo"], env={**os.environ, "MKF_PORT": str(free_port()), **env})


def lines(demo: Child) -> list[re.Match[str]]:
    return list(LINE.finditer(re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", demo.log())))


def flows(demo: Child) -> bool:
    """Whether messages went all the way and every mapping runs."""
    return any(int(line[4]) >= 40 and "retrying" not in line[5] for line in lines(demo))


# Rich takes TTY_COMPATIBLE=1 for a terminal: the live line instead of a plain one every 2 s.
@pytest.mark.parametrize(
    ("ending", "env"), [(signal.SIGINT, {}), (signal.SIGTERM, {"TTY_COMPATIBLE": "1", "COLUMNS": "200"})]
)
async def test_messages_flow_and_everything_ends_at_once(
    demo: Child, ending: signal.Signals, env: dict[str, str]
) -> None:
    start(demo, **env)
    await asyncio.to_thread(demo.wait_until, lambda: flows(demo), timeout=FLOWING_TIMEOUT, what="records read back")
    children = psutil.Process(demo.pid).children(recursive=True)
    assert len(children) >= 2  # the MQTT broker and the service
    demo.signal(ending)
    assert await asyncio.to_thread(demo.wait, EXIT_TIMEOUT) == 0, demo.log()
    assert not [child for child in children if child.is_running()]
    assert "Traceback" not in demo.log()
    assert "Stopped" in demo.log()


async def test_existing_brokers_are_used_and_no_session_stays_there(
    demo: Child, mosquitto: MqttBroker, kafka: KafkaCluster, unique: str, tmp_path: Path
) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(
        f"mqtt: {{host: {mosquitto.host}, port: {mosquitto.port}, client_id: '${{MKF_DEMO_CLIENT_ID}}'}}\n"
        f"kafka: {{bootstrap_server: {kafka.host}, port: {kafka.port}}}\n"
        f"forwarding: [{{name: d, mqtt: {{topic: demo/#}}, kafka: {{topic: demo-{unique}}}}}]\n"
    )
    start(
        demo,
        CONFIG_FILE=str(config),
        MKF_DEMO_MQTT=f"{mosquitto.host}:{mosquitto.port}",
        MKF_DEMO_KAFKA=kafka.bootstrap,
    )
    await asyncio.to_thread(demo.wait_until, lambda: flows(demo), timeout=FLOWING_TIMEOUT, what="records read back")
    (client_id,) = set(re.findall(r"mkf-demo-[0-9a-f]{8}", demo.log()))
    demo.signal(signal.SIGINT)
    assert await asyncio.to_thread(demo.wait, EXIT_TIMEOUT) == 0, demo.log()
    assert "could not be ended" not in demo.log()
    assert not await session_exists(mosquitto.host, mosquitto.port, f"{client_id}-d")
    assert f"In your Kafka at {kafka.bootstrap} stay the topics demo-{unique}" in demo.log()
    assert "nothing is left behind" not in demo.log()
    assert len(await kafka.read_all(f"demo-{unique}")) >= 40
    await kafka.delete_topic(f"demo-{unique}")


async def test_a_wrong_address_is_shown_with_the_reason_and_the_demo_still_ends(demo: Child) -> None:
    start(demo, MKF_DEMO_MQTT=f"127.0.0.1:{free_port()}")
    await asyncio.to_thread(
        demo.wait_until,
        lambda: any("demo: retrying" in line[5] and "(mqtt_" in line[5] for line in lines(demo)),
        timeout=FLOWING_TIMEOUT,
        what="the reason",
    )
    demo.signal(signal.SIGINT)
    assert await asyncio.to_thread(demo.wait, EXIT_TIMEOUT) == 0, demo.log()
    assert "could not be ended" in demo.log()


async def test_a_signal_during_the_start_ends_it_too(demo: Child) -> None:
    start(demo)
    await asyncio.to_thread(demo.wait_until, lambda: "Starting" in demo.log(), timeout=20, what="starting")
    demo.signal(signal.SIGINT)
    assert await asyncio.to_thread(demo.wait, EXIT_TIMEOUT) == 0, demo.log()


@pytest.mark.parametrize(
    ("env", "message"),
    [
        ({"MKF_DEMO_MQTT": "nonsense"}, "MKF_DEMO_MQTT must be host:port"),
        ({"MKF_DEMO_KAFKA": "127.0.0.1:1"}, "Kafka at 127.0.0.1:1"),
        ({"MKF_PORT": "eighty"}, "MKF_PORT must be a number"),
        ({"CONFIG_FILE": "/nowhere/config.yaml"}, "/nowhere/config.yaml"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(env: dict[str, str], message: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "server.demo"],
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_missing_packages_are_named_with_the_way_to_get_them() -> None:
    hide = (
        "import sys, importlib.util as u; f = u.find_spec; u.find_spec = lambda n, *a: None if n == 'iotcore' else f(n)"
    )
    code = f"{hide}\nfrom server.demo import run_demo\nsys.exit(run_demo())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "iotcore" in done.stderr
    assert "make setup" in done.stderr


def test_a_service_that_does_not_start_shows_its_log(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("nonsense: 1\nforwarding: [{name: d, mqtt: {topic: demo/#}, kafka: {topic: demo}}]\n")
    done = subprocess.run(
        [sys.executable, "-m", "server.demo"],
        env={**os.environ, "CONFIG_FILE": str(config), "MKF_PORT": str(free_port())},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert "the service does not start" in done.stderr
    assert "nonsense" in done.stderr


def test_the_plan_names_mappings_and_topics(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CONFIG_FILE", raising=False)
    assert plan().mappings == ("demo", "temperatures")
    assert plan().topics == ("demo_data", "temperatures")


@pytest.mark.parametrize("mqtt", ["{client_id: real}", "{client_id: '${MKF_DEMO_CLIENT_ID:-real}'}"])
def test_a_file_whose_client_ids_are_those_of_a_real_service_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, mqtt: str
) -> None:
    config = tmp_path / "config.yaml"
    entry = "{name: d, mqtt: {topic: a, client_id: also-real}, kafka: {topic: t}}"
    config.write_text(f"mqtt: {mqtt}\nforwarding: [{entry}]\n")
    monkeypatch.setenv("CONFIG_FILE", str(config))
    with pytest.raises(DemoError, match="take over the sessions of a service"):
        plan()


def test_external_brokers_are_host_and_port(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MKF_DEMO_MQTT", raising=False)
    assert external("MKF_DEMO_MQTT") is None
    monkeypatch.setenv("MKF_DEMO_MQTT", "broker:1883")
    assert str(external("MKF_DEMO_MQTT")) == "broker:1883"
    monkeypatch.setenv("MKF_DEMO_MQTT", "broker")
    with pytest.raises(DemoError):
        external("MKF_DEMO_MQTT")
