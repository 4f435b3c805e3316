"""The demo from start to end: who starts after whom, what is shown, and how it ends."""

from __future__ import annotations

import asyncio
import secrets
import signal
import sys
import tempfile
from contextlib import AsyncExitStack, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.live import Live
from rich.text import Text

from server.demo.brokers import Address, kafka_broker, mqtt_broker
from server.demo.children import DemoError
from server.demo.devices import NAMES, Fleet
from server.demo.readback import reader
from server.demo.service import Forwarded, Plan, Service, plan, service, status_path

if TYPE_CHECKING:
    from server.demo.readback import Reader

DEVICES = 4
PER_SECOND = 20.0
LIVE_INTERVAL = 0.5
PLAIN_INTERVAL = 2.0
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def run_demo(*, devices: int = DEVICES, per_second: float = PER_SECOND) -> int:
    """Run the demo until SIGINT, SIGTERM or SIGHUP; returns the exit code.

    MKF_DEMO_MQTT and MKF_DEMO_KAFKA (host:port) take existing brokers instead of the embedded ones.
    """
    console = Console(highlight=False)
    try:
        asyncio.run(_until_a_signal(console, devices=min(devices, len(NAMES)), per_second=per_second))
    except DemoError as error:
        Console(stderr=True, highlight=False).print(f"demo: {error}", markup=False, soft_wrap=True)
        return 1
    return 0


async def _until_a_signal(console: Console, *, devices: int, per_second: float) -> None:
    left: list[str] = []
    demo = asyncio.create_task(_demo(console, left, devices=devices, per_second=per_second))
    loop = asyncio.get_running_loop()
    asked_to_stop = asyncio.Event()

    def stop() -> None:
        # Once: a second Ctrl-C must not interrupt the cleaning up that the first one began.
        if not asked_to_stop.is_set():
            asked_to_stop.set()
            demo.cancel()

    for number in SIGNALS:
        loop.add_signal_handler(number, stop)
    try:
        await demo
    except asyncio.CancelledError:
        if not asked_to_stop.is_set():
            raise
        console.print("Stopped." if left else "Stopped; nothing is left behind.")
    finally:
        for line in left:
            console.print(line, markup=False, soft_wrap=True)


async def _demo(console: Console, left: list[str], *, devices: int, per_second: float) -> None:
    """Run until cancelled; `left` gets a line for each thing that stays."""
    wanted = plan()
    client_id = f"mkf-demo-{secrets.token_hex(4)}"  # nobody else's: whoever has it takes over the sessions
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mkf-demo-")))
        console.print("Starting the brokers and the service ...")
        mqtt = await stack.enter_async_context(mqtt_broker(folder))
        kafka = await stack.enter_async_context(kafka_broker(wanted.topics))
        if not kafka.embedded:
            left.append(
                f"In your Kafka at {kafka} stay the topics {', '.join(wanted.topics)} and what was written there."
            )
        far_end = await stack.enter_async_context(reader(kafka, wanted.topics))
        forwarder = await stack.enter_async_context(service(folder, wanted.config, mqtt, kafka, client_id=client_id))
        if not mqtt.embedded:
            stack.push_async_callback(_end_sessions, console, forwarder, f"{client_id}-... at {mqtt}", left)
        await forwarder.until_ready()
        console.print(_introduction(wanted, client_id, mqtt, kafka, forwarder), markup=False, soft_wrap=True)
        fleet = Fleet(mqtt, client_id=f"{client_id}-device", devices=devices, per_second=per_second)
        try:
            async with asyncio.TaskGroup() as group:
                for running in (
                    forwarder.until_it_ends(),
                    far_end.run(),
                    fleet.run(),
                    _show(console, wanted, fleet, forwarder, far_end),
                ):
                    group.create_task(running)
        except* DemoError as errors:
            raise errors.exceptions[0] from None


async def _end_sessions(console: Console, forwarder: Service, sessions: str, left: list[str]) -> None:
    console.print("Deleting the mappings, so that their sessions are ended at your MQTT broker ...")
    if not await forwarder.end_sessions():
        left.append(
            f"The MQTT sessions {sessions} could not be ended; the broker keeps those it has until they expire."
        )


def _introduction(wanted: Plan, client_id: str, mqtt: Address, kafka: Address, forwarder: Service) -> str:
    own = {True: "embedded", False: "yours"}
    lines = [
        f"MQTT     {mqtt} ({own[mqtt.embedded]}), client ids {client_id}-...",
        f"Kafka    {kafka} ({own[kafka.embedded]}), topics {', '.join(wanted.topics)}",
        f"config   {wanted.config}",
        f"log      {forwarder.log}",
        f"API      {forwarder.url}/docs",
        f"metrics  {forwarder.url}/metrics",
        *(f"status   {forwarder.url}{status_path(name)}" for name in wanted.mappings),
        "A message that two mappings match counts for both. Ctrl-C ends everything.",
    ]
    return "\n".join(lines)


async def _show(console: Console, wanted: Plan, fleet: Fleet, forwarder: Service, far_end: Reader) -> None:
    interval = LIVE_INTERVAL if console.is_terminal else PLAIN_INTERVAL
    live = Live(console=console, auto_refresh=False) if console.is_terminal else None
    with live or nullcontext():
        while True:
            line = _line(fleet, await forwarder.forwarded(wanted.mappings), far_end)
            if live is None:
                console.print(line, markup=False, soft_wrap=True)
                sys.stdout.flush()
            else:
                live.update(Text(line), refresh=True)
            await asyncio.sleep(interval)


def _line(fleet: Fleet, forwarded: Forwarded | None, far_end: Reader) -> str:
    if forwarded is None:
        counts = "received ?  delivered ?  (the service does not answer)"
        states = ""
    else:
        counts = f"received {forwarded.received}  delivered {forwarded.delivered}"
        states = "  ".join(f"{name}: {state}" for name, state in forwarded.states.items())
        states += "".join(f"  ({reason})" for reason in forwarded.reasons)
    return f"published {fleet.published}  {counts}  read back from Kafka {far_end.records}  {states}".rstrip()
