"""The forwarders that can be measured: how each is started, and which MQTT session it uses."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from tests.brokers import free_port

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

HERE = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class Task:
    """What a forwarder is to forward, between which brokers (host, port), with a folder for its files."""

    mqtt: tuple[str, int]
    kafka: tuple[str, int]
    topic_filter: str
    topic: str
    folder: Path
    name: str


@dataclass(frozen=True, slots=True)
class Command:
    """How to start a forwarder, and the client id of the session it will use."""

    client_id: str
    arguments: Sequence[str | Path]
    env: Mapping[str, str]


def service(task: Task) -> Command:
    """Our service: `mkf serve` with one mapping, everything else as it is by default."""
    config = {
        "mqtt": {"host": task.mqtt[0], "port": task.mqtt[1], "client_id": task.name},
        "kafka": {"bootstrap_server": task.kafka[0], "port": task.kafka[1]},
        "forwarding": [{"name": "bench", "mqtt": {"topic": task.topic_filter}, "kafka": {"topic": task.topic}}],
    }
    path = task.folder / "config.yaml"
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    env = {
        **os.environ,
        "CONFIG_FILE": str(path),
        "MKF_HOST": "127.0.0.1",
        "MKF_PORT": str(free_port()),
        "MKF_DATABASE_URL": f"sqlite:///{task.folder / 'mkf.db'}",
    }
    return Command(f"{task.name}-bench", [sys.executable, "-m", "server.cli", "serve"], env)


def one_by_one(task: Task) -> Command:
    """The plain loop of plain.py without pipelining: each message waits for the one before."""
    command = plain(task)
    return replace(command, arguments=[*command.arguments, "--one-by-one"])


def plain(task: Task) -> Command:
    """The plain loop of plain.py."""
    options = {
        "--mqtt": "{}:{}".format(*task.mqtt),
        "--kafka": "{}:{}".format(*task.kafka),
        "--client-id": task.name,
        "--filter": task.topic_filter,
        "--topic": task.topic,
    }
    arguments = [part for option in options.items() for part in option]
    return Command(task.name, [sys.executable, HERE / "plain.py", *arguments], dict(os.environ))
