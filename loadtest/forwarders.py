"""The forwarders that can be measured: how each is started, and which MQTT session it uses."""

from __future__ import annotations

import json
import os
import shlex
import sys
from dataclasses import dataclass, field
from pathlib import Path
from string import Formatter
from typing import TYPE_CHECKING, Any, Protocol

import yaml

from loadtest.measurement import MeasurementError
from tests.brokers import free_port

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from loadtest.endpoints import KafkaEndpoint, MqttEndpoint

ROOT = Path(__file__).parents[1]
# More than any measurement has: the prototype ends by itself after so many, and then its CPU could not be read.
NEVER = 10**12
PLACEHOLDERS = frozenset(
    {"mqtt_host", "mqtt_port", "kafka_host", "kafka_port", "kafka", "filter", "topic", "client_id", "qos", "wrapped"}
    | {"folder"}
)


@dataclass(frozen=True, slots=True)
class Task:
    """What a forwarder is to do: forward from where to where, with a folder for its files.

    `prefix` is the first level of all MQTT topics, and a name nobody else uses.
    """

    mqtt: MqttEndpoint
    kafka: KafkaEndpoint
    prefix: str
    topic: str
    qos: int
    folder: Path
    wrapped: bool = False

    @property
    def filter(self) -> str:
        """The MQTT topic filter."""
        return f"{self.prefix}/#"


@dataclass(frozen=True, slots=True)
class Command:
    """How to start a forwarder, and the client id of the session it will use.

    One that does not subscribe needs its session made before it starts. `http_port` is where its API listens, if any.
    """

    client_id: str
    arguments: Sequence[str | Path]
    env: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))
    subscribes: bool = True
    http_port: int | None = None


class Forwarder(Protocol):
    """Something that can be measured."""

    @property
    def name(self) -> str:
        """What reports call it."""

    def command(self, task: Task) -> Command:
        """How to start it for a task; writes the files it needs."""


@dataclass(frozen=True, slots=True)
class Service:
    """Our service, `mkf serve`: one mapping, or as many as asked with a topic filter each; all else by default."""

    name: str = "mkf"
    mappings: int = 1
    mapping: Mapping[str, Any] = field(default_factory=dict)

    def command(self, task: Task) -> Command:
        """Write its configuration file."""
        port = free_port()
        path = task.folder / "config.yaml"
        # JSON is YAML; a YAML writer would make aliases of what mappings share, and those are refused.
        path.write_text(json.dumps(self._config(task), indent=1))
        env = {
            **os.environ,
            "CONFIG_FILE": str(path),
            "MKF_HOST": "127.0.0.1",
            "MKF_PORT": str(port),
            "MKF_DATABASE_URL": f"sqlite:///{task.folder / 'mkf.db'}",
        }
        arguments = [sys.executable, "-m", "server.cli", "serve"]
        return Command(f"{task.prefix}-bench-0", arguments, env, http_port=port)

    def _config(self, task: Task) -> dict[str, Any]:
        return {
            "mqtt": {"host": task.mqtt.host, "port": task.mqtt.port, "client_id": task.prefix},
            "kafka": {"bootstrap_server": task.kafka.host, "port": task.kafka.port},
            "forwarding": [self._mapping(task, number) for number in range(self.mappings)],
        }

    def _mapping(self, task: Task, number: int) -> dict[str, Any]:
        topic = task.filter if self.mappings == 1 else f"{task.prefix}/{number:06d}/#"
        return {
            "name": f"bench-{number}",
            "mqtt": {"topic": topic, "qos": task.qos},
            "kafka": {"topic": task.topic, **self.mapping.get("kafka", {})},
            "wrap_as_json": self.mapping.get("wrap_as_json", task.wrapped),
        }


@dataclass(frozen=True, slots=True)
class Plain:
    """The plain aiomqtt + aiokafka loop of plain.py, pipelined or one message at a time."""

    one_by_one: bool = False

    @property
    def name(self) -> str:
        """Tells the two apart."""
        return "plain one by one" if self.one_by_one else "plain"

    def command(self, task: Task) -> Command:
        """Put its options together."""
        options = {
            "--mqtt": f"{task.mqtt.host}:{task.mqtt.port}",
            "--kafka": task.kafka.bootstrap,
            "--client-id": task.prefix,
            "--filter": task.filter,
            "--topic": task.topic,
            "--qos": str(task.qos),
        }
        flags = [*(["--one-by-one"] if self.one_by_one else []), *(["--wrap"] if task.wrapped else [])]
        arguments = [part for option in options.items() for part in option]
        env = {**os.environ, "PYTHONPATH": str(ROOT)}
        return Command(task.prefix, [sys.executable, "-m", "loadtest.plain", *arguments, *flags], env)


@dataclass(frozen=True, slots=True)
class Prototype:
    """A prototype of the fast path, usage: `PROTOTYPE CLIENT_ID COUNT TOPIC`.

    It resumes a session it does not make, and its brokers' ports are written in its source: it runs from a copy that
    has this run's.
    """

    path: Path
    name: str = "prototype"

    def command(self, task: Task) -> Command:
        """Copy it.

        Raises:
            MeasurementError: they are not where they are expected.
        """
        source = self.path.read_text()
        changes = {
            '"127.0.0.1:19092"': f'"{task.kafka.bootstrap}"',
            '"127.0.0.1", 18830': f'"{task.mqtt.host}", {task.mqtt.port}',
        }
        for written, wanted in changes.items():
            if source.count(written) != 1:
                raise MeasurementError(f"{self.path} does not have {written} once")
            source = source.replace(written, wanted)
        copy = task.folder / self.path.name
        copy.write_text(source)
        arguments: list[str | Path] = [sys.executable, copy, task.prefix, str(NEVER), task.topic]
        return Command(task.prefix, arguments, subscribes=False)


@dataclass(frozen=True, slots=True)
class Seed:
    """The Rust service this one implements anew. Its client id is exactly the one configured."""

    path: Path
    name: str = "seed"

    def command(self, task: Task) -> Command:
        """Write its configuration file."""
        config = {
            "mqtt": {"host": task.mqtt.host, "port": task.mqtt.port, "client_id": task.prefix},
            "kafka": {"bootstrap_server": task.kafka.host, "port": task.kafka.port, "config": {}},
            "forwarding": [
                {
                    "name": "bench",
                    "mqtt": {"topic": task.filter},
                    "kafka": {"topic": task.topic},
                    "wrap_as_json": task.wrapped,
                }
            ],
        }
        path = task.folder / "config.yaml"
        path.write_text(yaml.safe_dump(config, sort_keys=False))
        return Command(task.prefix, [self.path], {**os.environ, "CONFIG_FILE": str(path)})


@dataclass(frozen=True, slots=True)
class AnyCommand:
    """Any other forwarder: a command line with placeholders such as {kafka} (host:port).

    Raises:
        ValueError: there is no such placeholder.
    """

    text: str
    name: str

    def __post_init__(self) -> None:
        for _, found, _, _ in Formatter().parse(self.text):
            if found is not None and found not in PLACEHOLDERS:
                raise ValueError(f"{self.text!r}: {found!r} is no placeholder; there are {', '.join(PLACEHOLDERS)}")

    def command(self, task: Task) -> Command:
        """Fill the placeholders."""
        values: dict[str, str | int | Path] = {
            "mqtt_host": task.mqtt.host,
            "mqtt_port": task.mqtt.port,
            "kafka_host": task.kafka.host,
            "kafka_port": task.kafka.port,
            "kafka": task.kafka.bootstrap,
            "filter": task.filter,
            "topic": task.topic,
            "client_id": task.prefix,
            "qos": task.qos,
            "wrapped": str(task.wrapped).lower(),
            "folder": task.folder,
        }
        words: list[str | Path] = [word.format_map(values) for word in shlex.split(self.text)]
        return Command(task.prefix, words)


def chosen(names: Sequence[str], prototype: Path | None = None, seed: Path | None = None) -> list[Forwarder]:
    """The forwarders with these names: mkf, plain, plain-one-by-one, prototype, seed, or a command line.

    `prototype` and `seed` are where those two are; given, they are measured even if not named.

    Raises:
        ValueError: one is measured against itself, or it is not said where the prototype or the seed is.
    """
    ready: dict[str, Forwarder] = {"mkf": Service(), "plain": Plain(), "plain-one-by-one": Plain(one_by_one=True)}
    if prototype is not None:
        ready["prototype"] = Prototype(prototype.resolve())
    if seed is not None:
        ready["seed"] = Seed(seed.resolve())
    for name in ("prototype", "seed"):
        if name in names and name not in ready:
            raise ValueError(f"--{name} must say where it is")
    wanted = [*names, *(name for name in ("prototype", "seed") if name in ready and name not in names)]
    if len(set(wanted)) < len(wanted):
        raise ValueError("a forwarder can't be measured against itself")
    return [ready.get(text) or AnyCommand(text, f"command {number}") for number, text in enumerate(wanted, 1)]
