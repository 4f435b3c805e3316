"""The loop that one writes without thinking long: aiomqtt in, aiokafka's send() out, a future per message.

It keeps the same promise as the service: an acknowledgement only after Kafka's, in receive order. The sends are
pipelined, unless --one-by-one waits for each. SIGTERM brings what was received to Kafka and ends it.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import signal
from typing import TYPE_CHECKING, Any

import aiomqtt
from aiokafka import AIOKafkaProducer

if TYPE_CHECKING:
    from collections.abc import Sequence

Pending = asyncio.Queue[tuple[int, asyncio.Future[Any]]]
IN_FLIGHT = 10_000


async def forward(arguments: argparse.Namespace) -> None:
    """Forward until cancelled."""
    host, _, port = arguments.mqtt.rpartition(":")
    producer = AIOKafkaProducer(bootstrap_servers=arguments.kafka, acks="all")
    await producer.start()
    try:
        client = aiomqtt.Client(host, int(port), identifier=arguments.client_id, clean_session=False)
        client._client.manual_ack_set(True)  # noqa: SLF001 - aiomqtt has no public way to acknowledge
        async with client:
            await client.subscribe(arguments.filter, qos=1)
            pending: Pending = asyncio.Queue(IN_FLIGHT)
            acknowledging = asyncio.create_task(_acknowledge(client, pending))
            try:
                async for message in client.messages:
                    key = message.topic.value.encode()
                    future = await producer.send(arguments.topic, message.payload, key=key)
                    await pending.put((message.mid, future))
                    if arguments.one_by_one:
                        await pending.join()
            finally:
                await pending.join()
                acknowledging.cancel()
    finally:
        await producer.stop()


async def _acknowledge(client: aiomqtt.Client, pending: Pending) -> None:
    while True:
        packet_id, future = await pending.get()
        await future
        client._client.ack(packet_id, 1)  # noqa: SLF001
        pending.task_done()


async def _until_sigterm(arguments: argparse.Namespace) -> None:
    task = asyncio.create_task(forward(arguments))
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    with contextlib.suppress(asyncio.CancelledError):
        await task


def main(argv: Sequence[str] | None = None) -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("mqtt", "kafka", "client-id", "filter", "topic"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--one-by-one", action="store_true")
    asyncio.run(_until_sigterm(parser.parse_args(argv)))


if __name__ == "__main__":
    main()
