"""`mkf` as its users run it: exit codes, and what it says about what it can't use."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from server.store.store import Store

GOOD = """\
mqtt: {host: 127.0.0.1, port: 1, client_id: tested}
kafka: {bootstrap_server: 127.0.0.1, port: 1}
forwarding:
  - name: one
    mqtt: {topic: a/#}
    kafka: {topic: records}
"""
BAD = """\
mqtt:
  hots: localhost
  port: 70000
kafka:
  bootstrap_server: ${NOWHERE_SET}
forwarding:
  - name: one
    mqtt: {topic: a/#/b}
    kafka: {topic: records}
  - name: one
    mqtt: {topic: a/#}
    kafka: {topic: "no spaces"}
"""
BAD_LINES = (2, 3, 5, 8, 12)


def mkf(folder: Path, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run `mkf` in a folder, and wait for its end."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MKF_", "CONFIG_FILE"))}
    return subprocess.run(
        [sys.executable, "-m", "server.cli", *arguments],
        cwd=folder,
        env={**clean, "PYTHONPATH": str(Path(__file__).parents[2]), "MKF_PORT": "0", **env},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def create_database(path: Path) -> sqlite3.Connection:
    """Create the service's database, and open it as anybody may."""

    async def create() -> None:
        store = Store(f"sqlite:///{path}", client_id_of=lambda _: "")
        await store.open()
        await store.close()

    asyncio.run(create())
    return sqlite3.connect(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with a good configuration."""
    (tmp_path / "config.yaml").write_text(GOOD)
    return tmp_path


def refused(result: subprocess.CompletedProcess[str], *said: str) -> None:
    """The command ended with 2, said all this, and did not fall over."""
    assert result.returncode == 2, result.stderr
    for text in said:
        assert text in result.stderr
    assert "Traceback" not in result.stderr


def test_validate_accepts_a_good_file_without_connecting(folder: Path) -> None:
    result = mkf(folder, "validate", "config.yaml")
    assert (result.returncode, result.stdout) == (0, "config.yaml: valid, 1 mapping(s)\n")
    assert [entry.name for entry in folder.iterdir()] == ["config.yaml"]


@pytest.mark.parametrize("command", ["validate", "serve"])
def test_a_bad_file_is_refused_with_every_error_and_its_line(folder: Path, command: str) -> None:
    (folder / "bad.yaml").write_text(BAD)
    result = mkf(folder, *(("validate", "bad.yaml") if command == "validate" else ("serve",)), CONFIG_FILE="bad.yaml")
    refused(result, *(f"bad.yaml:{line}: " for line in BAD_LINES), "did you mean", "NOWHERE_SET")
    # Before anything was opened or connected.
    assert sorted(entry.name for entry in folder.iterdir()) == ["bad.yaml", "config.yaml"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"mqtt:\n  host: }\n", "file.yaml:2: not valid YAML"),
        (b"", "is empty"),
        (b"\xff\xfe", "is not UTF-8"),
        (b"- a\n", "expected the sections"),
    ],
)
def test_what_is_no_configuration_at_all_is_refused(folder: Path, content: bytes, said: str) -> None:
    (folder / "file.yaml").write_bytes(content)
    refused(mkf(folder, "validate", "file.yaml"), "file.yaml", said)


def test_a_missing_file_is_refused_by_its_name(folder: Path) -> None:
    refused(mkf(folder, "validate", "none.yaml"), "none.yaml", "No such file")
    refused(mkf(folder, "serve", CONFIG_FILE="none.yaml"), "none.yaml", "No such file")
    (folder / "config.yaml").unlink()
    refused(mkf(folder, "serve"), "config.yaml", "No such file")


def test_an_unknown_command_is_refused(folder: Path) -> None:
    refused(mkf(folder, "sevre"), "sevre")


@pytest.mark.parametrize(
    ("variable", "value"),
    [("MKF_PORT", "abc"), ("MKF_PORT", "70000"), ("MKF_LOG_LEVEL", "loud"), ("MKF_PRUNE", "perhaps")],
)
def test_a_setting_that_makes_no_sense_is_refused_by_its_name(folder: Path, variable: str, value: str) -> None:
    refused(mkf(folder, "serve", **{variable: value}), variable)


def test_a_port_in_use_is_refused(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        refused(mkf(folder, "serve", MKF_PORT=str(port)), f"127.0.0.1:{port}", "in use", "MKF_PORT")


def test_a_corrupt_database_is_refused_and_left_as_it_is(folder: Path) -> None:
    database = folder / "mkf.db"
    database.write_bytes(b"this is no database " * 1000)
    refused(mkf(folder, "serve", MKF_DATABASE_URL="sqlite:///mkf.db"), str(database), "damaged")
    assert database.read_bytes() == b"this is no database " * 1000


def test_a_lock_file_that_can_not_be_used_is_refused(folder: Path) -> None:
    (folder / "mkf.db.lock").mkdir()
    refused(mkf(folder, "serve", MKF_DATABASE_URL="sqlite:///mkf.db"), "mkf.db.lock can't be used")


def test_a_stored_mapping_of_another_version_is_refused_by_its_name(folder: Path) -> None:
    with contextlib.closing(create_database(folder / "mkf.db")) as database, database:
        row = ("strange", '{"mqtt": {}}', False, 1, "api", "2026-01-01", "2026-01-01")
        database.execute("INSERT INTO mapping VALUES (?, ?, ?, ?, ?, ?, ?)", row)
    refused(mkf(folder, "serve", MKF_DATABASE_URL="sqlite:///mkf.db"), "'strange' is not one this version understands")


def test_a_file_in_the_place_of_the_data_folder_is_refused(folder: Path) -> None:
    (folder / "data").write_text("in the way")
    refused(mkf(folder, "serve"), str(folder / "data"), "can't be created")


def test_a_folder_in_the_place_of_the_database_is_refused(folder: Path) -> None:
    (folder / "data" / "mkf.db").mkdir(parents=True)
    refused(mkf(folder, "serve"), "is not a file")


def test_a_database_that_is_not_supported_is_refused_without_its_password(folder: Path) -> None:
    result = mkf(folder, "serve", MKF_DATABASE_URL="mysql://user:secret@host/db")
    refused(result, "mysql")
    assert "secret" not in result.stderr + result.stdout
