"""The command line: what is wrong is said in one message that names it, with exit code 2, before anything connects."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import time
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import structlog
import uvicorn
from typer.testing import CliRunner, Result

from server import app as app_module
from server import cli
from server.store.errors import StoreError
from tests.virtualtime import in_virtual_time, now

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
        self.refused: StoreError | None = None
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


def test_a_store_that_turns_out_to_be_unusable_while_it_is_waited_for_exits_2(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    service = FakeService("crash")
    service.refused = StoreError("the store is another program's database")
    monkeypatch.setattr(app_module, "Service", lambda *_: service)
    _config(tmp_path)
    monkeypatch.setenv("MKF_PORT", "0")
    result = _run("serve")
    assert result.exit_code == 2
    assert "another program's database" in result.stderr


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
    server = cli._Server(uvicorn.Config(lambda: None, log_config=None))
    cli._asked_to_end(server, signal.SIGTERM)
    assert (server.should_exit, codes) == (True, [])
    cli._asked_to_end(server, signal.SIGINT)
    assert codes == [130]


@in_virtual_time
async def test_the_server_turns_once_a_second_and_ends_when_it_is_told_to(monkeypatch: pytest.MonkeyPatch) -> None:
    turns: list[float] = []
    turn = uvicorn.Server.on_tick

    async def counted(server: uvicorn.Server, counter: int) -> bool:
        turns.append(now())
        return await turn(server, counter)

    monkeypatch.setattr(uvicorn.Server, "on_tick", counted)
    server = cli._Server(uvicorn.Config(lambda: None, log_config=None))
    server.config.load()
    serving = asyncio.create_task(server.main_loop())
    await asyncio.sleep(10.5)
    assert 10 <= len(turns) <= 12
    first = server.server_state.default_headers
    await asyncio.sleep(1.0)
    assert server.server_state.default_headers is not first
    began = now()
    server.end()
    await serving
    assert now() == began


def test_without_uvloop_the_default_loop_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "uvloop", None)
    assert cli._loop_factory() is None


# --- who may use the API ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_without_any_token_it_listens_on_loopback_only(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, host: str
) -> None:
    _config(tmp_path)
    monkeypatch.setenv("MKF_PORT", "0")
    monkeypatch.setenv("MKF_HOST", host)
    result = _run("serve")
    assert result.exit_code == 2
    for named in ("MKF_AUTH=none", "MKF_ADMIN_TOKEN", "MKF_ADMIN_TOKEN_FILE", "mkf token create"):
        assert named in result.stderr


@pytest.mark.parametrize(
    ("usable", "code"), [("none", 2), ("expired", 2), ("revoked", 2), ("store", 0), ("environment", 0), ("open", 0)]
)
def test_it_listens_elsewhere_if_somebody_can_use_it_or_everybody_shall(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, usable: str, code: int
) -> None:
    async def until_signalled(*_: Any) -> int:
        return 0

    _config(tmp_path)
    monkeypatch.setattr(cli, "_until_signalled", until_signalled)
    monkeypatch.setenv("MKF_PORT", "0")
    monkeypatch.setenv("MKF_HOST", "0.0.0.0")
    if usable == "environment":
        monkeypatch.setenv("MKF_ADMIN_TOKEN", "x" * 32)
    elif usable == "open":
        monkeypatch.setenv("MKF_AUTH", "none")
    elif usable != "none":
        assert _run("token", "create", "a", "--scope", "read", "--expires", "1s").exit_code == 0
    if usable == "revoked":
        assert _run("token", "revoke", "1").exit_code == 0
    if usable == "expired":
        time.sleep(1.1)  # a second is the shortest life that a token can be given
    if usable == "store":
        assert _run("token", "create", "b", "--scope", "read").exit_code == 0
    with structlog.testing.capture_logs() as logs:
        assert _run("serve").exit_code == code
    assert [entry["event"] for entry in logs if entry["event"] == "api_open"] == ["api_open"] * (usable == "open")


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("MKF_ADMIN_TOKEN", "hunter2hunter2", "MKF_ADMIN_TOKEN: Value error, it has 14 characters, at least 32"),
        ("MKF_ADMIN_TOKEN", "hunter2 hunter2 hunter2 hunter2 hunter2", "MKF_ADMIN_TOKEN: Value error, it must be of"),
        ("MKF_ADMIN_TOKEN_FILE", "hunter2.txt", "MKF_ADMIN_TOKEN_FILE: hunter2.txt holds no usable token: it has 8 ch"),
        ("MKF_ADMIN_TOKEN_FILE", "none.txt", "MKF_ADMIN_TOKEN_FILE: none.txt can't be read: No such file"),
        ("MKF_AUTH", "basic", "MKF_AUTH: Input should be 'tokens' or 'none'"),
        ("MKF_TRUSTED_PROXIES", "*", "MKF_TRUSTED_PROXIES: Value error, must be addresses or networks"),
        ("MKF_TRUSTED_PROXIES", "10.0.0.1/8", "MKF_TRUSTED_PROXIES: Value error, must be addresses or networks"),
        ("MKF_TLS_CERT", "cert.pem", "MKF_TLS_KEY: Value error, MKF_TLS_CERT and MKF_TLS_KEY are needed together"),
        ("MKF_TLS_KEY", "key.pem", "MKF_TLS_KEY: Value error, MKF_TLS_CERT and MKF_TLS_KEY are needed together"),
    ],
)
def test_what_can_not_protect_the_api_is_refused_by_name(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, variable: str, value: str, said: str
) -> None:
    _config(tmp_path)
    (tmp_path / "hunter2.txt").write_text("password")
    monkeypatch.setenv("MKF_PORT", "0")
    monkeypatch.setenv(variable, value)
    result = _run("serve")
    assert result.exit_code == 2
    assert said in result.stderr
    assert "password" not in result.output


def test_a_certificate_that_can_not_be_used_exits_2_before_anything_listens(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    _config(tmp_path)
    monkeypatch.setattr(cli, "_listen", lambda _: pytest.fail("it listened"))
    for name in ("MKF_TLS_CERT", "MKF_TLS_KEY"):
        monkeypatch.setenv(name, str(tmp_path / "config.yaml"))
    result = _run("serve")
    assert result.exit_code == 2
    assert "config.yaml can't be used: expected are PEM files" in result.stderr


def test_two_first_admin_tokens_are_one_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MKF_ADMIN_TOKEN", "x" * 40)
    monkeypatch.setenv("MKF_ADMIN_TOKEN_FILE", "token")
    result = _run("serve")
    assert (result.exit_code, "x" * 40 in result.output) == (2, False)
    assert "MKF_ADMIN_TOKEN_FILE: Value error, MKF_ADMIN_TOKEN is set too" in result.stderr


# --- token ------------------------------------------------------------------------------------------------------------


def test_a_token_is_made_listed_and_revoked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MKF_DATABASE_URL", f"sqlite:///{tmp_path}/new/mkf.db")
    made = _run("token", "create", "ci", "--scope", "write", "--expires", "90d")
    assert made.exit_code == 0
    secret = made.stdout.removesuffix("\n")
    assert re.fullmatch("mkf_[A-Za-z0-9_-]{43}", secret), "the token alone, for scripts"
    assert re.search(r"token 1 \(ci, write\) expires at \d{4}-.* shown only now", made.stderr)
    assert "does not expire" in _run("token", "create", "boss", "--scope", "admin").stderr
    revoked = _run("token", "revoke", "1")
    assert (revoked.exit_code, revoked.stdout) == (0, "token 1 (ci) is revoked\n")
    listed = _run("token", "list")
    head, first, second = listed.stdout.splitlines()
    assert head.split() == ["ID", "NAME", "SCOPE", "STATE", "CREATED", "EXPIRES", "LAST", "USED"]
    assert first.split()[:4] == ["1", "ci", "write", "revoked"]
    assert second.split()[:4] == ["2", "boss", "admin", "active"]
    assert secret not in listed.output + revoked.output


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("create", "a b", "--scope", "read"), "letters, digits"),
        (("create", "a"), "--scope"),
        (("create", "a", "--scope", "root"), "root"),
        (("create", "a", "--scope", "read", "--expires", "soon"), "'soon' is not a time such as 90d"),
        (("revoke", "7"), "no API token with the id 7; `mkf token list` shows all"),
        (("revoke", "ci"), "ID"),
    ],
)
def test_what_can_not_be_done_with_tokens_exits_2(arguments: tuple[str, ...], said: str) -> None:
    result = _run("token", *arguments)
    assert result.exit_code == 2
    assert said in result.stderr
    assert result.stdout == ""


def test_a_name_in_use_makes_no_second_token() -> None:
    assert _run("token", "create", "ci", "--scope", "read").exit_code == 0
    result = _run("token", "create", "ci", "--scope", "read")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "'ci' is in use" in result.stderr


def test_tokens_need_a_store_that_can_be_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no database " * 1000)
    monkeypatch.setenv("MKF_DATABASE_URL", f"sqlite:///{tmp_path}/text")
    result = _run("token", "list")
    assert result.exit_code == 2
    assert "is damaged, or not a SQLite database" in result.stderr


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
