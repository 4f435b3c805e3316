"""`make bench`: how fast a persistent MQTT session is drained into Kafka, next to a plain loop in the same run.

Exits with 1 if our service is not --at-least times as fast. `make bench ARGS="--messages 50000 --rounds 1"`.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from loadtest.drain import PARTITIONS, TOPICS, Load, Place, drain
from loadtest.figures import Drain, MeasurementError, Summary, summarize
from loadtest.forwarders import one_by_one, plain, service
from tests.brokers import BrokerError, Kafka, Mosquitto

if TYPE_CHECKING:
    from collections.abc import Sequence

SERVICE, PLAIN = "mkf serve", "aiomqtt + send()"


def parsed(argv: Sequence[str] | None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--messages", type=int, default=200_000, help="how many our service drains (200000)")
    parser.add_argument("--plain-messages", type=int, default=20_000, help="how many the plain loop drains (20000)")
    parser.add_argument("--size", type=int, default=200, help="bytes in a payload (200)")
    parser.add_argument("--rounds", type=int, default=3, help="both, one after the other, so often; medians (3)")
    parser.add_argument("--one-by-one", action="store_true", help="a plain loop that waits for every send")
    parser.add_argument("--at-least", type=float, default=20.0, help="the ratio that must be reached, 0 for any (20)")
    options = parser.parse_args(argv)
    if min(options.messages, options.plain_messages) < 1 or options.rounds < 1:
        parser.error("there must be a message and a round")
    if options.size < len(f"{max(options.messages, options.plain_messages)} "):
        parser.error("the payload must have room for its number")
    return options


async def measured(options: argparse.Namespace, place: Place, console: Console) -> dict[str, list[Drain]]:
    """Measure both in turn, so that whatever else the machine does meets both."""
    drains: dict[str, list[Drain]] = {SERVICE: [], PLAIN: []}
    contest = (
        (SERVICE, service, Load(options.messages, options.size)),
        (PLAIN, one_by_one if options.one_by_one else plain, Load(options.plain_messages, options.size)),
    )
    for number in range(1, options.rounds + 1):
        for name, forwarder, load in contest:
            result = await drain(forwarder, place, load)
            drains[name].append(result)
            console.print(
                f"round {number}  {name:<{len(PLAIN)}}  {result.rate:>10,.0f} msg/s  {result.cpu_micros:>7.1f} µs CPU "
                f"a message  peak {result.peak_bytes / 1e6:,.0f} MB",
                highlight=False,
            )
    return drains


def table(summaries: dict[str, Summary], options: argparse.Namespace) -> Table:
    """The result as a table."""
    made = Table(
        title=f"Drain of a persistent session, QoS 1, {options.size} B, {TOPICS} topics, into Kafka "
        f"({PARTITIONS} partitions, acks=all); medians of {options.rounds}",
        title_justify="left",
    )
    made.add_column("forwarder")
    for column in ("messages", "msg/s", "CPU µs/message", "peak MB", "repeats", "left unacked"):
        made.add_column(column, justify="right")
    for name, found in summaries.items():
        made.add_row(
            name,
            f"{found.messages:,}",
            f"{found.rate:,.0f}",
            f"{found.cpu_micros:.1f}",
            f"{found.peak_mb:.0f}",
            str(found.repeats),
            str(found.unacknowledged),
        )
    return made


def report(drains: dict[str, list[Drain]], options: argparse.Namespace, console: Console) -> bool:
    """Print the result; returns whether it is good enough."""
    summaries = {name: summarize(found) for name, found in drains.items()}
    console.print(table(summaries, options))
    ours, theirs = summaries[SERVICE], summaries[PLAIN]
    ratio = ours.rate / theirs.rate
    if ours.messages != theirs.messages:
        console.print(f"The plain loop drained {theirs.messages:,} messages only: it takes long, and rates compare.")
    console.print(
        f"{ratio:.1f} times the rate of the plain loop ({'one by one' if options.one_by_one else 'pipelined'}), "
        f"{theirs.cpu_micros / ours.cpu_micros:.1f} times less CPU"
    )
    enough = bool(ratio >= options.at_least)
    if not enough:
        console.print(f"[red]less than {options.at_least:g} times[/red]")
    return enough


async def run(options: argparse.Namespace, console: Console) -> bool:
    """Start the brokers, measure, report."""
    with tempfile.TemporaryDirectory(prefix="mkf-bench-") as folder:
        path = Path(folder)
        # The broker must not be what is measured: no limit but the protocol's.
        unlimited = Mosquitto(
            path / "mosquitto", persistence=False, max_inflight=65_535, max_queued=0, extra=["max_queued_bytes 0"]
        )
        with unlimited as mosquitto, Kafka(path / "kafka") as kafka:
            return report(await measured(options, Place(mosquitto, kafka, path), console), options, console)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns the exit code."""
    console = Console(width=None if sys.stdout.isatty() else 120)
    options = parsed(argv)
    try:
        enough = asyncio.run(run(options, console))
    except (MeasurementError, BrokerError) as error:
        console.print(f"[red]no result:[/red] {error}", highlight=False)
        return 1
    return 0 if enough else 1


if __name__ == "__main__":
    sys.exit(main())
