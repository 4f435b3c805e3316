"""Mutated configuration files: each is a configuration or refused with lines, in no time, and no secret shows.

A failure prints the file and how to try it again.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest
import yaml
from hypothesis import HealthCheck, given, settings

from server.config.errors import ConfigError
from server.config.export import export_forwarding
from server.config.interpolation import escape
from server.config.load import Config, load_config, parse_config
from tests.security.extent import EXTENT
from tests.security.yaml_files import ANYWHERE, FROM_FILE, PASSWORD, WRITTEN, mutated_files

if TYPE_CHECKING:
    from pathlib import Path

_CPU_SECONDS = 2.0
_FILES = settings(
    max_examples=EXTENT.yaml_files,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)


@pytest.fixture
def environ(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Return an environment with a secret in it, in a folder with files that are one."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "SECRET").write_text(FROM_FILE + "\n")
    (tmp_path / "LARGE").write_text(FROM_FILE * 10_000)
    (tmp_path / "BINARY").write_bytes(FROM_FILE.encode() + b"\xff\x00")
    return {
        "MQTT_PASSWORD": PASSWORD,
        "ANYWHERE": ANYWHERE,
        "EMPTY": "",
        "LINES": f"{ANYWHERE}\nmqtt: 5\r\n---",
        "SURROGATE": f"{ANYWHERE}\udcff",
        "BRACES": f"{ANYWHERE}{{topic[99999]}}",
    }


@pytest.mark.timeout(1_200)
@_FILES
@given(text=mutated_files())
def test_a_mutated_file_is_a_configuration_or_refused_with_lines_and_shows_no_secret(
    text: str, environ: dict[str, str], tmp_path: Path
) -> None:
    began = time.process_time()
    try:
        config = _loaded(text, environ, tmp_path)
    except ConfigError as error:
        assert time.process_time() - began < _CPU_SECONDS
        _check_refusal(error, text)
    else:
        assert time.process_time() - began < _CPU_SECONDS
        _check_config(config)


def _loaded(text: str, environ: dict[str, str], folder: Path) -> Config:
    """Load it from a file where a file can hold it."""
    path = folder / "config.yaml"
    try:
        path.write_bytes(text.encode())
    except UnicodeEncodeError:
        return parse_config(text, environ, str(path))
    return load_config(path, environ)


def _check_refusal(error: ConfigError, text: str) -> None:
    said = str(error)
    assert error.problems
    # One line each: what is written in a file must not look like another message.
    assert len(said.splitlines()) == len(error.problems), said
    lines = len(text.splitlines()) + 1
    for problem in error.problems:
        assert problem.line is None or 1 <= problem.line <= lines, problem
        assert problem.message
    for secret in (PASSWORD, FROM_FILE, WRITTEN, ANYWHERE):
        assert secret not in said
        assert secret not in repr(error)


def _check_config(config: Config) -> None:
    mappings = [entry.mapping for entry in config.forwarding]
    exported = export_forwarding(mappings)
    shown = f"{config.warnings} {config.mqtt!r} {config.kafka!r}"
    # What is asked for anywhere else, such as a secret as a mapping's name, is shown as what it is there.
    if ANYWHERE not in exported:
        shown += f" {config!r} {exported}"
    for secret in (PASSWORD, WRITTEN):
        assert secret not in shown
    head = yaml.safe_dump({"mqtt": {"host": "h", "client_id": escape(config.mqtt.client_id)}, "kafka": {}})
    again = parse_config(head + exported, {}, "export")
    assert [entry.mapping for entry in again.forwarding] == mappings
