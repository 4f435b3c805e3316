"""How the load tool starts the forwarders it measures, and what its command line refuses."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import yaml
from typer.testing import CliRunner

from loadtest.__main__ import app
from loadtest.endpoints import KafkaEndpoint, MqttEndpoint
from loadtest.forwarders import AnyCommand, Plain, Prototype, Seed, Service, Task, chosen
from loadtest.measurement import MeasurementError
from server.config.load import load_config

if TYPE_CHECKING:
    from pathlib import Path

PROTOTYPE = """
AIOKafkaProducer(bootstrap_servers="127.0.0.1:19092")
create_connection(lambda: session, "127.0.0.1", 18830)
"""


@pytest.fixture
def task(tmp_path: Path) -> Task:
    return Task(MqttEndpoint("m", 1883), KafkaEndpoint("k", 9092), "run", "records", 2, tmp_path, wrapped=True)


def test_our_service_gets_a_file_it_accepts(task: Task) -> None:
    command = Service(mappings=2, mapping={"kafka": {"headers": {"source": "{topic}"}}}).command(task)
    config = load_config(task.folder / "config.yaml", {})
    first, second = (entry.mapping for entry in config.forwarding)
    assert first.client_id("run") == command.client_id
    assert (first.mqtt.topic, second.mqtt.topic) == ("run/000000/#", "run/000001/#")
    assert (first.kafka.topic, first.kafka.headers, first.mqtt.qos) == ("records", {"source": "{topic}"}, 2)
    assert first.wrap_as_json
    assert command.http_port == int(command.env["MKF_PORT"])


def test_the_plain_loop_is_told_everything(task: Task) -> None:
    words = [str(word) for word in Plain(one_by_one=True).command(task).arguments]
    assert words[3:] == [
        *("--mqtt", "m:1883", "--kafka", "k:9092", "--client-id", "run", "--filter", "run/#"),
        *("--topic", "records", "--qos", "2", "--one-by-one", "--wrap"),
    ]


def test_the_prototype_runs_from_a_copy_with_this_runs_ports(task: Task, tmp_path: Path) -> None:
    source = tmp_path / "source" / "fast_lane.py"
    source.parent.mkdir()
    source.write_text(PROTOTYPE)
    command = Prototype(source).command(task)
    copy = (task.folder / "fast_lane.py").read_text()
    assert '"k:9092"' in copy
    assert '"m", 1883' in copy
    assert source.read_text() == PROTOTYPE
    assert not command.subscribes
    source.write_text("something else")
    with pytest.raises(MeasurementError, match="does not have"):
        Prototype(source).command(task)


def test_the_seed_gets_a_file_as_its_readme_says(task: Task, tmp_path: Path) -> None:
    command = Seed(tmp_path / "forwarder").command(task)
    config = yaml.safe_load((task.folder / "config.yaml").read_text())
    assert config["mqtt"] == {"host": "m", "port": 1883, "client_id": "run"}
    assert config["forwarding"][0]["wrap_as_json"] is True
    assert (command.client_id, command.env["CONFIG_FILE"]) == ("run", str(task.folder / "config.yaml"))


def test_a_command_has_its_placeholders_filled(task: Task) -> None:
    command = AnyCommand("fwd --in '{mqtt_host}:{mqtt_port} {filter}' --out {kafka} {topic} {qos} {wrapped}", "x")
    assert command.command(task).arguments == [
        *("fwd", "--in", "m:1883 run/#", "--out", "k:9092", "records", "2", "true"),
    ]


@pytest.mark.parametrize("text", ["fwd {nonsense}", "fwd {", "fwd {}"])
def test_a_placeholder_that_does_not_exist_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"is no placeholder|expected '}'|Single '{'"):
        AnyCommand(text, "x")


def test_forwarders_are_chosen_by_name_by_path_and_by_command(tmp_path: Path) -> None:
    path = tmp_path / "some.py"
    path.write_text("")
    names = [each.name for each in chosen(["mkf", "plain", "plain-one-by-one", "a b", "c d"], path, path)]
    assert names == ["mkf", "plain", "plain one by one", "command 4", "command 5", "prototype", "seed"]
    assert [each.name for each in chosen(["prototype", "mkf"], prototype=path)] == ["prototype", "mkf"]
    with pytest.raises(ValueError, match="--seed must say where"):
        chosen(["mkf", "seed"])
    with pytest.raises(ValueError, match="against itself"):
        chosen(["mkf", "mkf"])


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["paced"], "--rate belongs to paced"),
        (["live", "--rate", "5"], "--rate belongs to paced"),
        (["drain", "--duration", "5"], "a drain has no --duration"),
        (["drain", "--size", "nonsense"], "is not like 200"),
        (["drain", "--mqtt", "h:1"], "go together"),
        (["drain", "--mqtt", "h", "--kafka", "k:1"], "is not host:port"),
        (["drain", "--mqtt-ca", "x"], "the tool's own brokers have none"),
        (["drain", "--kafka-cert", "x"], "need --kafka-ca"),
        (["drain", "--prototype", "/nowhere/fast_lane.py"], "does not exist"),
        (["drain", "--against", "fwd {nonsense}"], "'nonsense' is no placeholder"),
        (["fly"], "fly"),
    ],
)
def test_options_that_measure_nothing_are_refused(arguments: list[str], why: str) -> None:
    found = CliRunner().invoke(app, arguments)
    assert found.exit_code == 2
    assert why in " ".join(found.output.replace("│", "").split())
