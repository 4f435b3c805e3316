"""The MQTT broker killed and restarted, refusing, disconnecting; and another client with the service's id."""

from __future__ import annotations

import asyncio
import signal
import time
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

from tests.devices import LONG_SESSION, connected
from tests.faults.history import Excuse
from tests.faults.tap import MQTT_5, MQTT_311

if TYPE_CHECKING:
    from tests.faults.run import Case, Run

# What a server may say (MQTT 5.0, 3.14.2.1).
DISCONNECTS = (
    *(0x00, 0x80, 0x81, 0x82, 0x83, 0x87, 0x89, 0x8B, 0x8D, 0x8E, 0x8F, 0x90, 0x93, 0x94, 0x95, 0x96, 0x97, 0x98),
    *(0x99, 0x9A, 0x9B, 0x9C, 0x9D, 0x9E, 0x9F, 0xA0, 0xA1, 0xA2),
)
_TAKEN_OVER = 0x8E
# The same over MQTT 5 and 3.1.1 (3.2.2.2 and 3.2.2.3).
REFUSALS = (
    *((0x87, 5), (0x8C, 4), (0x88, 3), (0x86, 4), (0x85, 2), (0x89, 3), (0x97, 3), (0x9F, 3), (0x84, 1), (0x8A, 5)),
    *((0x9C, 3), (0x9D, 3), (0x80, 3), (0x83, 3)),
)
_TAKEOVER_SECONDS = 1.5


async def restart(run: Run, _: Case) -> None:
    """SIGTERM and start: with persistence nothing that the broker accepted is lost."""
    await asyncio.to_thread(run.mosquitto.restart)


async def kill_with_persistence(run: Run, _: Case) -> None:
    """SIGKILL shortly after it has written its database: what it accepted since is lost."""
    mosquitto = run.mosquitto
    before = mosquitto.database.stat().st_mtime_ns if mosquitto.database.exists() else 0
    saving = time.time()
    mosquitto.signal(signal.SIGUSR1)
    await run.until(
        lambda: mosquitto.database.exists() and mosquitto.database.stat().st_mtime_ns > before, "saved its database", 10
    )
    await asyncio.to_thread(mosquitto.kill)
    run.history.excuses.append(Excuse("killed after saving", "accepted", saving, time.time()))
    await asyncio.to_thread(mosquitto.start)


async def kill_without_persistence(run: Run, _: Case) -> None:
    """SIGKILL, and a start without its database: sessions and queues are gone."""
    run.broker_forgets()
    await asyncio.to_thread(run.mosquitto.restart, kill=True, wipe=True)


async def take_over(run: Run, _: Case) -> None:
    """Another client connects with each mapping's client id, holds the session for a while and acknowledges nothing."""
    await asyncio.gather(*(_hold(run, run.client_id(mapping)) for mapping in run.mappings))


async def _hold(run: Run, client_id: str) -> None:
    # The service takes its session back when it pleases.
    with suppress(ConnectionError):
        async with connected(
            run.mosquitto.host,
            run.mosquitto.port,
            client_id,
            auto_ack=False,
            clean_start=False,
            session_expiry_interval=LONG_SESSION,
        ) as connection:
            await asyncio.wait([connection.closed], timeout=_TAKEOVER_SECONDS)


async def refuse(run: Run, case: Case) -> None:
    """Every CONNECT is refused with some reason code, then none."""
    for turn in range(case.turn, case.turn + (2 if case.quick else 1)):
        code, code_of_311 = REFUSALS[turn % len(REFUSALS)]
        enough = run.tap.refused + len(run.mappings)
        run.tap.refusals = {MQTT_5: code, MQTT_311: code_of_311}
        await run.mqtt.reset()
        await run.until(partial(_refused, run, enough), "refused")
    run.tap.refusals = {}


async def disconnect(run: Run, case: Case) -> None:
    """The server says DISCONNECT with some reason code."""
    if case.quick:
        codes = case.random.sample([code for code in DISCONNECTS if code != _TAKEN_OVER], 3)
    else:
        codes = [DISCONNECTS[case.turn % len(DISCONNECTS)]]
    for code in codes:
        enough = run.tap.connections + len(run.mappings)
        run.tap.disconnect(code)
        await run.until(partial(_connected_again, run, enough), f"connected again after DISCONNECT 0x{code:02X}")


def _refused(run: Run, times: int) -> bool:
    return run.tap.refused >= times


def _connected_again(run: Run, connections: int) -> bool:
    return run.tap.connections >= connections and len(run.tap.connected) == len(run.mappings)


async def freeze(run: Run, case: Case) -> None:
    """SIGSTOP for the broker."""
    run.mosquitto.pause()
    await asyncio.sleep(case.seconds(20, 40, quick=8))
    run.mosquitto.resume()
