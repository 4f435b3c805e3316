"""`python -m loadtest drain|live|paced`: measure a forwarder, alone or against others."""

from __future__ import annotations

import json
from contextlib import nullcontext
from dataclasses import asdict
from enum import StrEnum
from functools import partial
from pathlib import Path  # noqa: TC003 - typer looks at it
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from loadtest import modes, terminal
from loadtest.contest import compete, good
from loadtest.document import document
from loadtest.endpoints import KafkaEndpoint, MqttEndpoint, Tls
from loadtest.forwarders import chosen
from loadtest.machine import described
from loadtest.page import page, section
from loadtest.site import Site, given_site, own_site
from loadtest.trial import NO_RESULT
from loadtest.workload import Workload

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from loadtest.measurement import Measurement

DEFAULT_MESSAGES = 200_000
DEFAULT_DURATION = 10.0
DEFAULT_ROUNDS = 5
# With a duration alone, the time ends it.
NO_LIMIT = 10**10


class Mode(StrEnum):
    """What is measured."""

    DRAIN = "drain"
    LIVE = "live"
    PACED = "paced"


app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)

WORKLOAD, COMPETITION, BROKERS, REPORT = "What is published", "What is measured", "Brokers", "Report"


@app.command()
def main(
    mode: Annotated[
        Mode,
        typer.Argument(
            help="drain: fill a persistent session, then let the forwarder empty it; live: publish at full speed; "
            "paced: publish at --rate"
        ),
    ],
    *,
    messages: Annotated[
        int | None, typer.Option(min=1, help="[200000, paced: rate x duration]", rich_help_panel=WORKLOAD)
    ] = None,
    size: Annotated[
        str,
        typer.Option(
            help="bytes in a payload: 200, 100-1000, lognormal:200,1.0 (median, sigma) or 50:0.9,10000:0.1 (weights)",
            rich_help_panel=WORKLOAD,
        ),
    ] = "200",
    topics: Annotated[int, typer.Option(min=1, help="MQTT topics", rich_help_panel=WORKLOAD)] = 100,
    qos: Annotated[int, typer.Option(min=0, max=2, rich_help_panel=WORKLOAD)] = 1,
    publishers: Annotated[int, typer.Option(min=1, help="processes", rich_help_panel=WORKLOAD)] = 1,
    rate: Annotated[float | None, typer.Option(help="messages a second, for paced", rich_help_panel=WORKLOAD)] = None,
    duration: Annotated[
        float | None,
        typer.Option(help="seconds of publishing, for live and paced [paced: 10]", rich_help_panel=WORKLOAD),
    ] = None,
    wrapped: Annotated[
        bool, typer.Option("--wrapped", "-w", help="the forwarder wraps payloads as JSON", rich_help_panel=WORKLOAD)
    ] = False,
    silence: Annotated[
        float,
        typer.Option(help="seconds; what comes later than so long after the last is lost", rich_help_panel=COMPETITION),
    ] = modes.SILENCE,
    forwarder: Annotated[
        str, typer.Option(help="mkf, or anything --against takes", rich_help_panel=COMPETITION)
    ] = "mkf",
    against: Annotated[
        list[str] | None,
        typer.Option(
            help="another forwarder in the same run, repeatable: plain, plain-one-by-one, prototype, seed, or a "
            "command with {mqtt_host} {mqtt_port} {kafka_host} {kafka_port} {kafka} {filter} {topic} {client_id} {qos} "
            "{wrapped} {folder}",
            rich_help_panel=COMPETITION,
        ),
    ] = None,
    prototype: Annotated[
        Path | None, typer.Option(exists=True, help="where `prototype` is (fast_lane.py)", rich_help_panel=COMPETITION)
    ] = None,
    seed: Annotated[
        Path | None, typer.Option(exists=True, help="where `seed` is (binary)", rich_help_panel=COMPETITION)
    ] = None,
    rounds: Annotated[
        int | None, typer.Option(min=1, help="[5 with --against, else 1]", rich_help_panel=COMPETITION)
    ] = None,
    mqtt: Annotated[str | None, typer.Option(help="host:port [starts a Mosquitto]", rich_help_panel=BROKERS)] = None,
    kafka: Annotated[str | None, typer.Option(help="host:port [starts a Kafka]", rich_help_panel=BROKERS)] = None,
    window: Annotated[
        int | None,
        typer.Option(min=1, help="messages in flight to the forwarder [no limit]", rich_help_panel=BROKERS),
    ] = None,
    mqtt_ca: Annotated[Path | None, typer.Option(help="PEM; TLS to MQTT", rich_help_panel=BROKERS)] = None,
    mqtt_cert: Annotated[Path | None, typer.Option(rich_help_panel=BROKERS)] = None,
    mqtt_key: Annotated[Path | None, typer.Option(rich_help_panel=BROKERS)] = None,
    kafka_ca: Annotated[Path | None, typer.Option(help="PEM; TLS to Kafka", rich_help_panel=BROKERS)] = None,
    kafka_cert: Annotated[Path | None, typer.Option(rich_help_panel=BROKERS)] = None,
    kafka_key: Annotated[Path | None, typer.Option(rich_help_panel=BROKERS)] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="write everything measured there", rich_help_panel=REPORT)
    ] = None,
    html_file: Annotated[
        Path | None, typer.Option("--html", help="write a page with plots there", rich_help_panel=REPORT)
    ] = None,
) -> None:
    """Publish to MQTT, read from Kafka, and report what a forwarder between the two does.

    Exit code 1: messages were lost or out of order, or there is no result.
    """
    console = Console()
    try:
        workload = _workload(
            mode,
            messages=messages,
            size=size,
            topics=topics,
            qos=qos,
            publishers=publishers,
            rate=rate,
            duration=duration,
        )
        contestants = chosen([forwarder, *(against or [])], prototype, seed)
        mqtt_tls, kafka_tls = _tls("mqtt", mqtt_ca, mqtt_cert, mqtt_key), _tls("kafka", kafka_ca, kafka_cert, kafka_key)
        site = _site(mqtt, mqtt_tls, kafka, kafka_tls)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    how_often = rounds or (DEFAULT_ROUNDS if len(contestants) > 1 else 1)
    measure = modes.drain if mode is Mode.DRAIN else modes.live
    try:
        with (
            site as brokers,
            brokers.with_window(window) if window else nullcontext(brokers) as place,
            _progress(console) as bar,
        ):
            task = bar.add_task("", total=None)

            def tell(stage: str, done: int, total: int) -> None:
                bar.update(task, description=stage, completed=done, total=total or None)

            def told(number: int, found: Measurement) -> None:
                bar.console.print(terminal.line(number, found), highlight=False)

            measured = partial(measure, site=place, workload=workload, wrapped=wrapped, silence=silence, progress=tell)
            results = compete(contestants, how_often, measured, told)
    except NO_RESULT as error:
        console.print(f"[red]no result:[/red] {error}", highlight=False)
        raise typer.Exit(1) from None
    title = f"{mode}: {workload}, {how_often} rounds"
    terminal.show(results, title, console)
    facts = described()
    if json_file is not None:
        about = {"machine": facts, "mode": mode.value, "workload": asdict(workload), "wrapped": wrapped}
        json_file.write_text(json.dumps(about | document(results), indent=1))
    if html_file is not None:
        html_file.write_text(page(f"Load test, {mode}", facts, [section(title, results)]))
    raise typer.Exit(0 if good(results) else 1)


def _workload(
    mode: Mode,
    *,
    messages: int | None,
    size: str,
    topics: int,
    qos: int,
    publishers: int,
    rate: float | None,
    duration: float | None,
) -> Workload:
    if (mode is Mode.PACED) != (rate is not None):
        raise ValueError("--rate belongs to paced, which needs it")
    if mode is Mode.DRAIN and duration is not None:
        raise ValueError("a drain has no --duration, it ends when the session is empty")
    if messages is None and rate is not None:
        messages = round(rate * (duration or DEFAULT_DURATION))
    elif messages is None:
        messages = DEFAULT_MESSAGES if duration is None else NO_LIMIT
    return Workload(messages, size, topics, qos, publishers, rate, duration)


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal():
        raise ValueError(f"{text!r} is not host:port")
    return host, int(port)


def _tls(name: str, ca: Path | None, cert: Path | None, key: Path | None) -> Tls | None:
    if ca is None:
        if cert is not None or key is not None:
            raise ValueError(f"--{name}-cert and --{name}-key need --{name}-ca")
        return None
    return Tls(ca, cert, key)


def _site(
    mqtt: str | None, mqtt_tls: Tls | None, kafka: str | None, kafka_tls: Tls | None
) -> AbstractContextManager[Site]:
    if mqtt is None and kafka is None:
        if mqtt_tls or kafka_tls:
            raise ValueError("TLS needs --mqtt and --kafka: the tool's own brokers have none")
        return own_site()
    if mqtt is None or kafka is None:
        raise ValueError("--mqtt and --kafka go together")
    return given_site(MqttEndpoint(*_address(mqtt), mqtt_tls), KafkaEndpoint(*_address(kafka), kafka_tls))


def _progress(console: Console) -> Progress:
    return Progress(
        SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
        console=console, transient=True,
    )  # fmt: skip


if __name__ == "__main__":
    app()
