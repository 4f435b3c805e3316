"""`mkf`: serve, validate, demo, token, session. Owns signals and exit codes; opens the store before uvicorn starts.

Exit codes: 0 ended as asked; 1 something broke while running; 2 the settings, the configuration file, the store or what
was asked for can't be used; 128 + n ended at once by a second signal n.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import faulthandler
import gc
import os
import signal
import socket
import sys
from datetime import UTC, datetime
from pathlib import Path  # noqa: TC003 - typer reads it at run time
from typing import TYPE_CHECKING, Annotated, NoReturn, TypeVar

import structlog
import typer
import uvicorn
from pydantic import ValidationError

from server.config.errors import ConfigError
from server.config.load import load_config
from server.core.address import address
from server.core.tokens import Scope, check_name, lifetime
from server.files import on_change
from server.listening import Certificate, CertificateError, server_config
from server.logs import configure_logging
from server.settings import Settings
from server.store.errors import StoreError, TokenNameTakenError, TokenNotFoundError
from server.tasks import ended, event_within
from server.ticks import tick_within

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

    from server.app import Service
    from server.config.load import Config
    from server.store.stored import StoredToken
    from server.store.tokens import Tokens

_Result = TypeVar("_Result")

UNUSABLE = 2
_BACKLOG = 2048
_STDERR = 2  # whatever sys.stderr is

_ACTOR = "cli"

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
token_app = typer.Typer(no_args_is_help=True)
app.add_typer(token_app, name="token", help="API tokens in the store of MKF_DATABASE_URL, also while the service runs.")


@app.callback()
def _mkf() -> None:
    """Forward MQTT messages to Kafka: at least once, in order, managed while it runs."""


@app.command()
def validate(file: Annotated[Path, typer.Argument(help="the configuration file")]) -> None:
    """Check a configuration file without connecting to anything."""
    config = _config(file)
    for warning in config.warnings:
        typer.echo(f"warning: {warning}", err=True)
    typer.echo(f"{file}: valid, {len(config.forwarding)} mapping(s)")


@app.command()
def demo() -> None:
    """Run the service with brokers and devices of its own."""
    try:
        from server.demo.run import run_demo  # noqa: PLC0415 - its dependencies are not those of the service
    except ModuleNotFoundError as error:
        _refuse(f"the demo needs {error.name}, which is not installed here; run it by `make demo`")
    raise typer.Exit(run_demo())


session_commands = typer.Typer(no_args_is_help=True, help="MQTT sessions at the broker.")
app.add_typer(session_commands, name="session")


@session_commands.command("end")
def end_session(client_id: Annotated[str, typer.Argument(help="the MQTT client id, exactly")]) -> None:
    """End a session that another program has left at the broker, with all that is queued in it.

    Stop that program first: while it runs it would make the session anew. The sessions of mappings are refused.
    """
    from server import app as service  # noqa: PLC0415 - `mkf validate` must not load the brokers' clients
    from server.mqtt.port import ConnectionEndedError  # noqa: PLC0415 - the same

    settings = _settings()
    config = _config(settings.config_file)
    if not client_id:
        _refuse("a session without a client id ends with its connection")
    try:
        address = asyncio.run(service.end_foreign_session(settings, config, client_id))
    except (service.OwnSessionError, StoreError) as error:
        _refuse(f"the session {client_id!r} was not ended: {error}")
    except ConnectionEndedError as error:
        typer.echo(f"the session {client_id!r} was not ended: {error}", err=True)
        raise typer.Exit(1) from None
    typer.echo(f"{address} has no session {client_id!r} any more, nor anything queued in it")


@app.command()
def serve() -> None:
    """Run the service until SIGTERM or SIGINT; a second one ends it at once."""
    faulthandler.enable(_STDERR)  # a crash in a library's C code says nothing else
    settings = _settings()
    configure_logging(settings.log_level, settings.log_format)
    config = _config(settings.config_file)
    certificate = _certificate(settings)
    listening = _listen(settings)
    gc.disable()  # what is loaded stays: to look for garbage in it takes a tenth of the start
    try:
        with listening, asyncio.Runner(loop_factory=_loop_factory()) as runner:
            code = runner.run(_serve(settings, config, listening, certificate))
    except StoreError as error:
        _refuse(str(error))
    finally:
        gc.enable()
    raise typer.Exit(code)


@token_app.command("create")
def create_token(
    name: Annotated[str, typer.Argument(help="what events and the log call it")],
    scope: Annotated[Scope, typer.Option(help="admin includes write, and that includes read")],
    expires: Annotated[str | None, typer.Option(help="after so long, such as 90d or 12h; else never")] = None,
) -> None:
    """Make a token. It alone goes to the output, and is shown never again."""
    try:
        check_name(name)
        expires_at = None if expires is None else datetime.now(UTC) + lifetime(expires)
    except ValueError as error:
        _refuse(str(error))
    token, secret = _in_store(lambda tokens: tokens.create(name, scope, expires_at=expires_at, actor=_ACTOR))
    until = "does not expire" if token.expires_at is None else f"expires at {_time(token.expires_at)}"
    typer.echo(f"token {token.id} ({token.name}, {token.scope}) {until}; keep it, it is shown only now:", err=True)
    typer.echo(secret)


@token_app.command("list")
def list_tokens() -> None:
    """List all tokens that were ever made."""
    now = datetime.now(UTC)
    lines: list[tuple[str, ...]] = [("ID", "NAME", "SCOPE", "STATE", "CREATED", "EXPIRES", "LAST USED")]
    lines += [
        (
            str(token.id),
            token.name,
            token.scope,
            token.state(now),
            *(_time(at) for at in (token.created_at, token.expires_at, token.last_used_at)),
        )
        for token in _in_store(lambda tokens: tokens.all())
    ]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        typer.echo("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


@token_app.command("revoke")
def revoke_token(token_id: Annotated[int, typer.Argument(metavar="ID", help="as `mkf token list` shows it")]) -> None:
    """Revoke a token for good. A running service takes notice within a second."""

    async def revoke(tokens: Tokens) -> StoredToken:
        return await tokens.revoke(token_id, actor=_ACTOR)

    token = _in_store(revoke)
    typer.echo(f"token {token.id} ({token.name}) is revoked")


def _in_store(work: Callable[[Tokens], Awaitable[_Result]]) -> _Result:
    """Do something with the tokens of the store, which is created if it is missing."""
    from server.store.store import Store  # noqa: PLC0415 - `mkf validate` needs no database

    store = Store(_settings().database_url, client_id_of=lambda _: "")

    async def opened() -> _Result:
        await store.open()
        try:
            return await work(store.tokens)
        finally:
            await store.close()

    try:
        return asyncio.run(opened())
    except (TokenNotFoundError, TokenNameTakenError) as error:
        _refuse(f"{error}; `mkf token list` shows all")
    except StoreError as error:
        _refuse(str(error))


def _time(at: datetime | None) -> str:
    return "-" if at is None else at.strftime("%Y-%m-%d %H:%M:%SZ")


async def _serve(settings: Settings, config: Config, listening: socket.socket, certificate: Certificate | None) -> int:
    # `mkf validate` must not load the brokers' clients.
    from server.api.admin_token import AccessError  # noqa: PLC0415
    from server.app import Service, opened  # noqa: PLC0415

    try:
        async with opened(Service(settings, config)) as service:
            return await _until_signalled(service, settings, listening, certificate)
    except AccessError as error:
        _refuse(str(error))


async def _until_signalled(
    service: Service, settings: Settings, listening: socket.socket, certificate: Certificate | None
) -> int:
    server = _Server(server_config(service.api, trusted_proxies=settings.trusted_proxies, certificate=certificate))
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, _asked_to_end, server, number)
    host, port = listening.getsockname()[:2]
    scheme = "http" if certificate is None else "https"
    structlog.get_logger().info("serving", url=f"{scheme}://{address(host, port)}", pid=os.getpid())

    service.on_crash = server.end
    _spare_the_collector()
    _give_back_memory()
    async with _watched(certificate):
        with contextlib.suppress(SystemExit):  # uvicorn's own code for a start that failed
            await server.serve(sockets=[listening])
    if service.refused is not None:
        raise service.refused
    return 0 if server.started and not service.crashed else 1


@contextlib.asynccontextmanager
async def _watched(certificate: Certificate | None) -> AsyncIterator[None]:
    """Reload the certificate when its files change."""
    if certificate is None:
        yield
        return
    watching = asyncio.create_task(on_change(certificate.files, certificate.reload), name="certificate")
    try:
        yield
    finally:
        await ended(watching)


def _spare_the_collector() -> None:
    """Let the garbage collector look at what is new, and seldom.

    A message is several objects that live for a round trip; with Python's defaults the collector walks through all of
    them, and all the libraries, again and again: it took more than half of the CPU time of a drain. A mapping's memory
    holds some 30,000 messages with two lists each (the codec's), so with this threshold most are gone before the
    collector comes; with 10,000 it still took 0.5 µs of the 3.1 that a message costs.
    """
    gc.collect()
    gc.freeze()
    gc.enable()
    gc.set_threshold(50_000, 20, 100)


def _give_back_memory() -> None:
    """Return what starting has used and freed, some 4 MB, which glibc would keep."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


class _Server(uvicorn.Server):
    """uvicorn, but it is told to end and does not look ten times a second whether it is to.

    Without its signal handling, too, which ends the process with 143.
    """

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._asked_to_end = asyncio.Event()

    def end(self) -> None:
        """End, as soon as what is being answered is answered."""
        self.should_exit = True
        self._asked_to_end.set()

    async def main_loop(self) -> None:
        """Serve until told to end; once a second there is a new Date header."""
        loop = asyncio.get_running_loop()
        while not await self.on_tick(0):
            now = loop.time()
            await event_within(self._asked_to_end, tick_within(now, 1.0) - now)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals to us."""
        yield


def _asked_to_end(server: _Server, number: int) -> None:
    if server.should_exit:
        os._exit(128 + number)
    structlog.get_logger().info("shutting_down", signal=signal.Signals(number).name)
    server.end()


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop  # noqa: PLC0415 - it does not exist everywhere
    except ModuleNotFoundError:
        return None
    return uvloop.new_event_loop


def _settings() -> Settings:
    try:
        return Settings()
    except ValidationError as error:
        problems = [
            f"{'_'.join(['MKF', *map(str, problem['loc'])]).upper()}: {problem['msg']}" for problem in error.errors()
        ]
        _refuse("the environment can't be used:\n" + "\n".join(problems))


def _config(file: Path) -> Config:
    try:
        return load_config(file, os.environ)
    except ConfigError as error:
        _refuse(str(error))


def _certificate(settings: Settings) -> Certificate | None:
    if settings.tls_cert is None or settings.tls_key is None:
        return None
    try:
        return Certificate(settings.tls_cert, settings.tls_key)
    except CertificateError as error:
        _refuse(str(error))


def _listen(settings: Settings) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        return socket.create_server((settings.host, settings.port), family=family, backlog=_BACKLOG)
    except OSError as error:
        _refuse(
            f"can't listen on {address(settings.host, settings.port)}: {error.strerror}; set MKF_HOST and MKF_PORT to "
            "an address that is free here"
        )


def _refuse(message: str) -> NoReturn:
    typer.echo(message, err=True)
    raise typer.Exit(UNUSABLE)


def main() -> None:
    """Run the `mkf` command."""
    sys.exit(app())


if __name__ == "__main__":
    main()
