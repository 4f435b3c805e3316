"""The command line: what is wrong is said in one message that names it, with exit code 2, before anything connects."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest
import structlog
from typer.testing import CliRunner, Result

from server import app as app_module
from server import cli
from server.store.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

GOOD = """
mqtt: {host: localhost, client_id: base}
kafka: {bootstrap_server: localhost}
forwarding:
  - name: a
    mqtt: {topic: "a/#"}
    kafka: {topic: k}
"""


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.upper().startswith("MKF_")] + ["CONFIG_FILE"]:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli, "configure_logging", lambda *_: None)


def _run(*arguments: str) -> Result:
    return CliRunner().invoke(cli.app, arguments)


def _config(folder: Path, text: str = GOOD) -> Path:
    file = folder / "config.yaml"
    file.write_text(text)
    return file


# --- validate ---------------------------------------------------------------------------------------------------------


def test_a_valid_file_is_called_valid_and_counted(tmp_path: Path) -> None:
    result = _run("validate", str(_config(tmp_path)))
    assert result.exit_code == 0
    assert result.stdout == f"{tmp_path}/config.yaml: valid, 1 mapping(s)\n"


def test_warnings_go_to_stderr_and_do_no_harm(tmp_path: Path) -> None:
    text = GOOD.replace("client_id: base", "port: 1883")
    result = _run("validate", str(_config(tmp_path, text)))
    assert result.exit_code == 0
    assert "warning: " in result.stderr


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (GOOD.replace("topic: k", "topic: k, keys: x"), "keys"),
        (GOOD.replace("host: localhost", "host: '${NOT_SET_ANYWHERE}'"), "NOT_SET_ANYWHERE"),
        ("a: [", "config.yaml"),
    ],
)
def test_an_invalid_file_exits_2_and_says_where(tmp_path: Path, text: str, said: str) -> None:
    result = _run("validate", str(_config(tmp_path, text)))
    assert result.exit_code == 2
    assert said in result.stderr
    assert result.stdout == ""


def test_a_missing_file_exits_2_and_is_named(tmp_path: Path) -> None:
    result = _run("validate", str(tmp_path / "nothing.yaml"))
    assert result.exit_code == 2
    assert "nothing.yaml" in result.stderr


def test_no_command_shows_the_help() -> None:
    result = _run()
    assert "serve" in result.output
    assert "validate" in result.output


# --- serve ------------------------------------------------------------------------------------------------------------


def test_settings_that_can_not_be_used_exit_2_and_name_the_variable_and_never_the_value(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MKF_PORT", "hunter2")
    monkeypatch.setenv("MKF_LOG_LEVEL", "s3cret")
    result = _run("serve")
    assert result.exit_code == 2
    assert "MKF_PORT: " in result.stderr
    assert "MKF_LOG_LEVEL: " in result.stderr
    assert "hunter2" not in result.output
    assert "s3cret" not in result.output


def test_a_configuration_that_can_not_be_used_exits_2_before_anything_listens(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CONFIG_FILE", str(tmp_path / "nothing.yaml"))
    monkeypatch.setattr(cli, "_listen", lambda _: pytest.fail("it listened"))
    assert _run("serve").exit_code == 2


def test_a_port_in_use_exits_2_and_says_what_to_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    _config(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        monkeypatch.setenv("MKF_PORT", str(port))
        result = _run("serve")
    assert result.exit_code == 2
    assert f"127.0.0.1:{port}" in result.stderr
    assert "MKF_PORT" in result.stderr


def test_a_host_that_is_not_ours_exits_2(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    _config(tmp_path)
    monkeypatch.setenv("MKF_HOST", "2001:db8::1")
    result = _run("serve")
    assert result.exit_code == 2
    assert "[2001:db8::1]:8080" in result.stderr
    assert "MKF_HOST" in result.stderr


def test_a_store_that_can_not_be_used_exits_2_and_says_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    _config(tmp_path)
    monkeypatch.setenv("MKF_PORT", "0")
    monkeypatch.setenv("MKF_DATABASE_URL", f"sqlite:///{tmp_path}/config.yaml")
    result = _run("serve")
    assert result.exit_code == 2
    assert "config.yaml" in result.stderr


def test_a_lock_that_can_not_be_used_exits_2_and_says_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    _config(tmp_path)
    (tmp_path / "mkf.db.lock").mkdir()
    monkeypatch.setenv("MKF_PORT", "0")
    monkeypatch.setenv("MKF_DATABASE_URL", "sqlite:///mkf.db")
    result = _run("serve")
    assert result.exit_code == 2
    assert "mkf.db.lock can't be used: Is a directory" in result.stderr


@pytest.mark.parametrize(("code", "error"), [(0, None), (1, None), (2, StoreError("the store is broken"))])
def test_the_exit_code_is_the_services(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, code: int, error: StoreError | None
) -> None:
    async def serve(*_: Any) -> int:
        if error:
            raise error
        return code

    _config(tmp_path)
    monkeypatch.setenv("MKF_PORT", "0")
    monkeypatch.setattr(cli, "_serve", serve)
    result = _run("serve")
    assert result.exit_code == code
    assert ("the store is broken" in result.stderr) is (error is not None)


class FakeService:
    """A service whose API is a plain ASGI application."""

    def __init__(self, end: str) -> None:
        self.end = end
        self.crashed = False
        self.on_crash: Callable[[], None] = lambda: None

        async def api(scope: Any, receive: Any, send: Any) -> None:  # uvicorn wants a plain function
            await self._api(scope, receive, send)

        self.api = api

    async def open(self) -> None:
        pass

    async def close(self) -> None:
        pass

    async def _api(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        assert scope["type"] == "lifespan"
        await receive()
        if self.end == "no start":
            await send({"type": "lifespan.startup.failed", "message": "no"})
            return
        await send({"type": "lifespan.startup.complete"})
        asyncio.get_running_loop().call_soon(self._end)
        await receive()
        await send({"type": "lifespan.shutdown.complete"})

    def _end(self) -> None:
        if self.end == "crash":
            self.crashed = True
            self.on_crash()
        else:
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize(("end", "code"), [("signal", 0), ("crash", 1), ("no start", 1)])
def test_asked_to_end_is_0_and_everything_else_is_1(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, end: str, code: int
) -> None:
    service = FakeService(end)
    monkeypatch.setattr(app_module, "Service", lambda *_: service)
    _config(tmp_path)
    monkeypatch.setenv("MKF_PORT", "0")
    assert _run("serve").exit_code == code


@pytest.mark.parametrize(("host", "written"), [("127.0.0.1", "http://127.0.0.1:"), ("::1", "http://[::1]:")])
def test_the_url_it_serves_at_can_be_used_as_it_is_logged(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, host: str, written: str
) -> None:
    monkeypatch.setattr(app_module, "Service", lambda *_: FakeService("signal"))
    _config(tmp_path)
    monkeypatch.setenv("MKF_PORT", "0")
    monkeypatch.setenv("MKF_HOST", host)
    with structlog.testing.capture_logs() as logs:
        assert _run("serve").exit_code == 0
    (url,) = (entry["url"] for entry in logs if entry["event"] == "serving")
    assert url.startswith(written)


def test_a_second_signal_ends_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    codes: list[int] = []
    monkeypatch.setattr(os, "_exit", codes.append)
    server = cast("cli._Server", SimpleNamespace(should_exit=False))
    cli._asked_to_end(server, signal.SIGTERM)
    assert (server.should_exit, codes) == (True, [])
    cli._asked_to_end(server, signal.SIGINT)
    assert codes == [130]


def test_without_uvloop_the_default_loop_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "uvloop", None)
    assert cli._loop_factory() is None


# --- the rest ---------------------------------------------------------------------------------------------------------


def test_a_demo_that_lacks_its_brokers_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "server.demo.run", None)
    result = _run("demo")
    assert result.exit_code == 2
    assert "make demo" in result.stderr


def test_the_demos_exit_code_is_the_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "server.demo.run", SimpleNamespace(run_demo=lambda: 3))
    assert _run("demo").exit_code == 3


def test_main_ends_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["mkf", "validate", "nothing.yaml"])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == 2
