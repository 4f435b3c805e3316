"""The loop that one writes without thinking long: aiomqtt in, aiokafka's send() out, a future per message.

It keeps the same promise as the service: an acknowledgement only after Kafka's, in receive order. The sends are
pipelined, unless --one-by-one waits for each. SIGTERM brings what was received to Kafka and ends it.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import json
import signal
from typing import TYPE_CHECKING, Any

import aiomqtt
from aiokafka import AIOKafkaProducer

if TYPE_CHECKING:
    from collections.abc import Sequence

Pending = asyncio.Queue[tuple[aiomqtt.Message, asyncio.Future[Any]]]
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
            await client.subscribe(arguments.filter, qos=arguments.qos)
            pending: Pending = asyncio.Queue(IN_FLIGHT)
            acknowledging = asyncio.create_task(_acknowledge(client, pending))
            try:
                async for message in client.messages:
                    key = message.topic.value.encode()
                    value = _wrapped(message) if arguments.wrap else message.payload
                    future = await producer.send(arguments.topic, value, key=key)
                    await pending.put((message, future))
                    if arguments.one_by_one:
                        await pending.join()
            finally:
                await pending.join()
                acknowledging.cancel()
    finally:
        await producer.stop()


async def _acknowledge(client: aiomqtt.Client, pending: Pending) -> None:
    while True:
        message, future = await pending.get()
        await future
        if message.qos:
            client._client.ack(message.mid, message.qos)  # noqa: SLF001
        pending.task_done()


def _wrapped(message: aiomqtt.Message) -> bytes:
    payload = base64.b64encode(bytes(message.payload)).decode()
    return json.dumps({"topic": message.topic.value, "payload": payload}).encode()


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
    parser.add_argument("--qos", type=int, default=1)
    parser.add_argument("--one-by-one", action="store_true", help="wait for each send")
    parser.add_argument("--wrap", action="store_true", help="as JSON, with the topic")
    asyncio.run(_until_sigterm(parser.parse_args(argv)))


if __name__ == "__main__":
    main()
