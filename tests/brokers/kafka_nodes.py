"""A Kafka of several nodes, whose clients may be sent through proxies while tests read and write directly."""

from __future__ import annotations

import uuid
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Self

from tests.brokers.kafka import Kafka, KafkaCluster
from tests.brokers.process import free_port

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

HEAP = "320m"
HOST = "127.0.0.1"


class KafkaNodes(KafkaCluster):
    """Nodes numbered from 1; node 1 is the controller too, so the others can come and go.

    Each node has a listener for the tests, and a second one that tells clients to connect to one of `advertised`, the
    port of a proxy in front of `behind`. `nodes[0]` is node 1.
    """

    def __init__(self, folder: Path, *, advertised: Sequence[int], heap: str = HEAP) -> None:
        count = len(advertised)
        direct, controller = [free_port() for _ in range(count)], free_port()
        self.behind = [free_port() for _ in range(count)]
        super().__init__(",".join(f"{HOST}:{port}" for port in direct))
        cluster = str(uuid.uuid4())
        self.nodes: list[Kafka] = []
        for index in range(count):
            listeners = {"PLAINTEXT": direct[index], "PROXIED": self.behind[index]}
            told = {**listeners, "PROXIED": advertised[index]}
            if not index:
                listeners["CONTROLLER"] = controller
            config = {
                "process.roles": "broker" if index else "broker,controller",
                "node.id": str(index + 1),
                "controller.quorum.voters": f"1@{HOST}:{controller}",
                "listeners": _addresses(listeners),
                "advertised.listeners": _addresses(told),
                "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,PROXIED:PLAINTEXT,CONTROLLER:PLAINTEXT",
                # Leaders go back where they belong soon after a node has come back.
                "leader.imbalance.check.interval.seconds": "2",
                "leader.imbalance.per.broker.percentage": "0",
            }
            node = Kafka(
                folder / f"node-{index + 1}",
                config=config,
                heap=heap,
                ports=(direct[index], controller),
                cluster=cluster,
            )
            self.nodes.append(node)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        for node in self.nodes:
            if node.running:
                node.kill()

    def start(self) -> None:
        """Start the nodes that don't run, all at once."""
        self._each([node for node in self.nodes if not node.running], Kafka.start)

    def stop(self) -> None:
        """SIGTERM: a controlled shutdown, the controller last."""
        for node in reversed(self.nodes):
            node.stop()

    def kill(self) -> None:
        """SIGKILL."""
        self._each(self.nodes, Kafka.kill)

    @staticmethod
    def _each(nodes: Sequence[Kafka], call: Callable[[Kafka], None]) -> None:
        with ThreadPoolExecutor() as threads:
            list(threads.map(call, nodes))


def _addresses(listeners: dict[str, int]) -> str:
    return ",".join(f"{name}://{HOST}:{port}" for name, port in listeners.items())
