"""The load tool itself, with few messages: that it measures and judges, not what."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from typer.testing import CliRunner

from loadtest import bench, modes, mqtt
from loadtest.crew import publishers, run_all
from loadtest.endpoints import KafkaEndpoint, MqttEndpoint, Tls
from loadtest.experiments import Scale
from loadtest.forwarders import AnyCommand, Service
from loadtest.measurement import MeasurementError
from loadtest.site import Site
from loadtest.workload import Workload
from tests.brokers import free_port

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.brokers import KafkaCluster, Mosquitto, MqttBroker

ROOT = Path(__file__).parents[2]
FAULTY = f"{sys.executable} {Path(__file__).parent / 'faulty_forwarder.py'}"
PLAIN_OPTIONS = (
    "--mqtt {mqtt_host}:{mqtt_port} --kafka {kafka} --client-id {client_id} --filter {filter} --topic {topic}"
)


@pytest.fixture
def site(own_mosquitto: Callable[..., Mosquitto], kafka: KafkaCluster, tmp_path: Path) -> Site:
    """Return a Mosquitto that can be frozen, and the shared Kafka."""
    mosquitto = own_mosquitto(persistence=False)
    folder = tmp_path / "site"
    folder.mkdir()
    return Site(MqttEndpoint(mosquitto.host, mosquitto.port), KafkaEndpoint(kafka.host, kafka.port), folder, mosquitto)


async def loadtest(mosquitto: MqttBroker, kafka: KafkaCluster, *arguments: str) -> tuple[int, str]:
    """Run the tool between the shared brokers; returns its exit code and what it said."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "loadtest", *arguments),
        *("--mqtt", f"{mosquitto.host}:{mosquitto.port}", "--kafka", kafka.bootstrap),
        cwd=ROOT,
        env={**os.environ, "COLUMNS": "120", "PYTHONPATH": str(ROOT)},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    said, _ = await process.communicate()
    return await process.wait(), said.decode()


@pytest.mark.alone  # it holds a rate
async def test_at_a_pace_against_another_with_all_reports(
    mosquitto: MqttBroker, kafka: KafkaCluster, tmp_path: Path
) -> None:
    paths = tmp_path / "report.json", tmp_path / "report.html"
    options = ["--rate", "500", "--duration", "1", "--against", "plain", "--rounds", "1"]
    code, said = await loadtest(mosquitto, kafka, "paced", *options, "--json", str(paths[0]), "--html", str(paths[1]))
    assert code == 0, said
    assert "mkf / plain, round by round" in said
    report: dict[str, Any] = json.loads(paths[0].read_text())
    for name in ("mkf", "plain"):
        (found,) = report["forwarders"][name]
        assert found["verdict"] == {
            "published": 500,
            "lost": 0,
            "repeated": 0,
            "out_of_order": 0,
            "topics_out_of_order": 0,
            "first_lost": None,
            "foreign": 0,
            "good": True,
        }
        assert found["messages_per_second"] == pytest.approx(500, rel=0.3)
        assert 0 < found["latency_ms"]["p50"] <= found["latency_ms"]["max"] < 60_000
        assert 10_000_000 < found["peak_bytes"] < 500_000_000
        assert {"forwarder", "reader", "publisher 0", "all others"} == set(found["cpu_cores_by_process"])
    assert "plotly" in paths[1].read_text()


@pytest.mark.parametrize(("fault", "row"), [("lose", "lost (all rounds)"), ("swap", "out of order")])
async def test_loss_and_disorder_end_with_1(mosquitto: MqttBroker, kafka: KafkaCluster, fault: str, row: str) -> None:
    options = ["--messages", "200", "--topics", "1", "--silence", "1"]
    code, said = await loadtest(mosquitto, kafka, "live", *options, "--forwarder", f"{FAULTY} {fault} {PLAIN_OPTIONS}")
    assert code == 1, said
    rows = {cells[1].strip(): cells[2].strip() for line in said.splitlines() if len(cells := line.split("│")) == 4}
    wrong = {name: rows[name] for name in ("lost (all rounds)", "out of order", "repeated") if rows[name] != "0"}
    assert wrong == {row: "2"}


async def test_a_forwarder_that_forwards_nothing_is_no_result(mosquitto: MqttBroker, kafka: KafkaCluster) -> None:
    code, said = await loadtest(mosquitto, kafka, "drain", "--messages", "10", "--forwarder", "false")
    assert code == 1
    assert "forwards nothing" in said


async def test_a_session_is_drained_through_a_small_window(site: Site) -> None:
    workload = Workload(2_000, "lognormal:100,1.0", topics=10, qos=2, publishers=2)
    with site.with_window(20) as behind:
        found = await asyncio.to_thread(modes.drain, Service(), behind, workload, wrapped=True)
    assert found.verdict.good
    assert (found.verdict.published, found.verdict.repeated, found.unacknowledged) == (2_000, 0, 0)
    assert found.rate > 0
    assert 0 < found.cpu_micros < 100_000
    assert set(found.cpu) == {"forwarder", "mosquitto", "window", "all others"}
    assert found.latencies.count == 2_000


@pytest.mark.parametrize("size", ["16", "150", "20000"])
def test_what_is_taken_is_acknowledged(site: Site, size: str) -> None:
    resumed = {"clean_start": False, "session_expiry_interval": 60, "receive_max": 100}
    mqtt.create_session(site.mqtt, "taker", "taken/#", 1)
    with publishers(site.mqtt, "taken", Workload(1_000, size, topics=10)) as workers:
        run_all(workers, 30, lambda: None)
    with mqtt.connected(site.mqtt, "taker", **resumed) as connection:
        connection.take(1_000)
    mqtt.publish_one(site.mqtt, "taken/last", b"last")
    with mqtt.connected(site.mqtt, "taker", **resumed) as connection:
        while not connection.messages:
            assert connection.read(10)
        assert [message.payload for message in connection.messages] == [b"last"]


def test_the_rate_of_the_broker_alone(site: Site) -> None:
    assert modes.broker_alone(site, Workload(1_000)) > 0


def test_to_take_more_than_there_is_ends_with_an_error(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mqtt, "ANSWER_TIMEOUT", 0.5)
    mqtt.create_session(site.mqtt, "taker", "taken/#", 1)
    mqtt.publish_one(site.mqtt, "taken/last", b"last")
    with (
        mqtt.connected(site.mqtt, "taker", clean_start=False, session_expiry_interval=0) as connection,
        pytest.raises(mqtt.MqttError, match="after 1 of 2 messages"),
    ):
        connection.take(2)


async def test_what_ends_in_the_middle_is_an_error_with_its_log(site: Site) -> None:
    quits = AnyCommand("sh -c 'echo so long; exit 3'", "quits")
    with pytest.raises(MeasurementError, match="so long"):
        await asyncio.to_thread(modes.live, quits, site, Workload(100))


def test_the_bench_finds_its_rows(site: Site, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(bench, "own_site", lambda: nullcontext(site))
    scale = Scale(rounds=1, drain=1_500, live=500, paced_seconds=0.5, mappings=3, mappings_seconds=1)
    monkeypatch.setattr(bench, "SHORT", scale)
    found = CliRunner().invoke(bench.app, ["--only", "full", "--json", str(tmp_path / "b.json")])
    assert found.exit_code == 0, found.output
    rows = json.loads((tmp_path / "b.json").read_text())["targets"]
    assert [row[0] for row in rows] == ["live, full speed", "event loop lag, full load", "/readyz, full load"]
    assert all(row[2] for row in rows)


def test_publishers_speak_tls_and_show_a_certificate(own_mosquitto: Callable[..., Mosquitto], tmp_path: Path) -> None:
    key, cert = tmp_path / "key.pem", tmp_path / "cert.pem"
    names = ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1", "-days", "2"]
    request = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", *names]
    subprocess.run([*request, "-keyout", str(key), "-out", str(cert)], check=True, capture_output=True)
    port = free_port()
    listener = [f"listener {port} 127.0.0.1", f"certfile {cert}", f"keyfile {key}", f"cafile {cert}"]
    own_mosquitto(persistence=False, extra=[*listener, "require_certificate true"])
    workload = Workload(3_000, publishers=2)
    with publishers(MqttEndpoint("127.0.0.1", port, Tls(cert, cert, key)), "tls", workload) as workers:
        assert [each.messages for each in run_all(workers, 30, lambda: None)] == [1_500, 1_500]
    with pytest.raises(OSError, match="CERTIFICATE_VERIFY_FAILED"):
        MqttEndpoint("localhost", port, Tls(cert)).open()
