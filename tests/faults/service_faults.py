"""The service killed, ended, or frozen."""

from __future__ import annotations

import asyncio
import socket
from contextlib import ExitStack
from typing import TYPE_CHECKING

import httpx

from tests.faults.proxy import Direction

if TYPE_CHECKING:
    from tests.faults.run import Case, Run

# Enough for several batches a mapping.
_HELD = 20


async def kill(run: Run, case: Case) -> None:
    """SIGKILL at a random moment."""
    await asyncio.sleep(case.seconds(0.0, 5.0, quick=0.5))
    await _killed(run)
    await run.restart()


async def _killed(run: Run) -> None:
    await asyncio.gather(*(asyncio.to_thread(service.kill9) for service in run.services.values()))


async def kill_before_puback(run: Run, _: Case) -> None:
    """SIGKILL when Kafka has confirmed messages and their acknowledgements have not reached the broker."""
    run.mqtt.change(blocked=frozenset({Direction.UP}))
    await run.until(lambda: all(run.tap.held(each) >= _HELD for each in run.mappings), "acknowledgements held back", 10)
    await _killed(run)
    await run.mqtt.reset()
    run.mqtt.change()
    await run.restart()


async def kill_in_pause(run: Run, case: Case) -> None:
    """SIGKILL between the request to pause and its end, which slow answers of Kafka put off."""
    _slow_kafka(run, 0.5)
    await _pause(run)
    await asyncio.sleep(case.seconds(0.0, 0.4, quick=0.4))
    await _killed(run)
    _slow_kafka(run, 0.0)
    await run.restart()
    await _each_mapping(run, "resume")


def _slow_kafka(run: Run, latency: float) -> None:
    for link in run.kafka_links:
        link.change(latency=latency)


async def _pause(run: Run) -> None:
    await _each_mapping(run, "pause")


async def _each_mapping(run: Run, action: str) -> None:
    for label, service in run.services.items():
        for mapping in run.history.services[label]:
            response = await service.api.post(f"/api/v1/mappings/{mapping.partition('/')[2]}/{action}")
            assert response.status_code == httpx.codes.ACCEPTED, response.text


# --- SIGTERM ----------------------------------------------------------------------------------------------------------


async def terminate_without_kafka(run: Run, _: Case) -> None:
    """SIGTERM while Kafka is away and messages wait for it."""
    for link in run.kafka_links:
        await link.refuse()
    await run.until(lambda: all(each.in_flight > _HELD for each in run.states()), "messages waiting", 10)
    await run.terminate()
    for link in run.kafka_links:
        await link.listen()
    await run.restart()


async def terminate_without_mqtt(run: Run, _: Case) -> None:
    """SIGTERM while the MQTT broker is away, in the middle of a drain."""
    _slow_kafka(run, 0.3)
    await run.mqtt.refuse()
    await run.terminate()
    _slow_kafka(run, 0.0)
    await run.mqtt.listen()
    await run.restart()


async def terminate_with_open_clients(run: Run, _: Case) -> None:
    """SIGTERM while clients of the API hold requests open, in the middle of a drain."""
    _slow_kafka(run, 0.3)
    with ExitStack() as clients:
        for service in run.services.values():
            for request in (
                b"GET /api/v1/mappings HTTP/1.1\r\nHost: x\r\n",  # headers without an end
                b"POST /api/v1/mappings HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{",  # half a body
                b"GET /livez HTTP/1.1\r\nHost: x\r\nConnection: keep-alive\r\n\r\n",  # idle between two requests
            ):
                client = clients.enter_context(socket.create_connection(("127.0.0.1", service.port)))
                client.sendall(request)
        await run.terminate()
    _slow_kafka(run, 0.0)
    await run.restart()


# --- SIGSTOP ----------------------------------------------------------------------------------------------------------


async def freeze(run: Run, case: Case) -> None:
    """SIGSTOP for a while: everything waits, and time has passed afterwards."""
    for service in run.services.values():
        service.pause()
    await asyncio.sleep(case.seconds(20, 40, quick=8))
    for service in run.services.values():
        service.resume()
