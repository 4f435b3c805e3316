"""A forwarder under measurement: process, session, topic. It is talked to by MQTT, Kafka and signals only."""

from __future__ import annotations

import time
import uuid
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import psutil
from confluent_kafka import KafkaException

from loadtest import mqtt
from loadtest.forwarders import Task
from loadtest.measurement import FORWARDER, MeasurementError
from loadtest.payload import headers, probe
from loadtest.processes import usage
from loadtest.workload import topic_name
from tests.brokers.process import BrokerError, Child

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from loadtest.forwarders import Command, Forwarder
    from loadtest.site import Site, Topic
    from loadtest.workload import Workload

# What measuring may come to instead of figures: a broker that can't be reached is an OSError or a KafkaException.
NO_RESULT = (MeasurementError, BrokerError, OSError, KafkaException)

START_TIMEOUT = 60.0
EXIT_TIMEOUT = 30.0
# A forwarder that waits for CONNACK gives up after a while, commonly 10 s.
SETTLE_TIMEOUT = 9.0
LEFT_SILENCE = 5.0
_QUIET_SECONDS = 0.4
_QUIET_CPU_SECONDS = 0.02
_POLL_SECONDS = 0.05
_PROBE_SECONDS = 0.2


@dataclass(frozen=True, slots=True)
class Trial:
    """A forwarder that can be started and stopped; `task` is what it does, `topic` where its records appear."""

    site: Site
    task: Task
    command: Command
    topic: Topic
    child: Child

    def start(self) -> None:
        """Start the process."""
        self.child.spawn(self.command.arguments, env=self.command.env)

    def stop(self) -> None:
        """End it by SIGTERM, which lets it finish what it has begun."""
        self.child.terminate(EXIT_TIMEOUT)

    def establish(self) -> None:
        """Make its session exist: by starting and stopping it once, or for it if it doesn't subscribe."""
        if self.command.subscribes:
            self.start()
            self.wait_until_forwarding()
            self.stop()
        else:
            mqtt.create_session(self.site.mqtt, self.command.client_id, self.task.filter, self.task.qos)

    def wait_until_forwarding(self) -> None:
        """Send probes until one is in Kafka.

        Raises:
            MeasurementError: none is, or the forwarder ended.
        """

        def forwarding() -> bool:
            mqtt.publish_one(self.site.mqtt, topic_name(self.task.prefix, 0), probe())
            time.sleep(_PROBE_SECONDS)
            return self.topic.records() > 0

        self._until(forwarding, START_TIMEOUT, "forwards nothing")

    def wait_until_idle(self, timeout: float = SETTLE_TIMEOUT) -> None:
        """Wait until it is connected to the MQTT broker, and neither of them has anything left to do.

        The broker too: acknowledgements it has not read yet are lost when the forwarder is stopped.

        Raises:
            MeasurementError: that takes too long.
        """
        self._until(self._connected, START_TIMEOUT, "does not connect to the MQTT broker")
        used, quiet_since = self._cpu_seconds(), time.monotonic()

        def idle() -> bool:
            nonlocal used, quiet_since
            now = self._cpu_seconds()
            if now - used > _QUIET_CPU_SECONDS:
                used, quiet_since = now, time.monotonic()
            return time.monotonic() - quiet_since >= _QUIET_SECONDS

        self._until(idle, timeout, "does not become idle")

    def pids(self) -> dict[str, int]:
        """The processes by name whose CPU is of interest: this one, and the brokers if they are the tool's own."""
        pids = {FORWARDER: self.child.pid}
        if self.site.mosquitto is not None:
            pids["mosquitto"] = self.site.mosquitto.pid
        if self.site.kafka_process is not None:
            pids["kafka"] = self.site.kafka_process.pid
        if self.site.window is not None:
            pids["window"] = self.site.window.pid
        return pids

    def unacknowledged(self) -> int:
        """How many messages its session still holds (at most a receive maximum); ends it. It must be stopped."""
        address = self.site.mqtt
        with mqtt.last_connection(address, self.command.client_id) as connection:
            mqtt.publish_one(address, topic_name(self.task.prefix, 0), probe())
            left = 0
            # More than the receive maximum hide the probe.
            while connection.read(LEFT_SILENCE):
                numbers, _ = headers([message.payload or b"" for message in connection.messages])
                connection.messages.clear()
                left += int((numbers >= 0).sum())
                if (numbers < 0).any():
                    break
            return left

    def _until(self, condition: Callable[[], bool], timeout: float, what: str) -> None:
        deadline = time.monotonic() + timeout
        while not condition():
            if not self.child.running or time.monotonic() > deadline:
                raise MeasurementError(str(self.child.error(what)))
            time.sleep(_POLL_SECONDS)

    def _cpu_seconds(self) -> float:
        mosquitto = self.site.mosquitto
        return usage(self.child.pid).cpu_seconds + (usage(mosquitto.pid).cpu_seconds if mosquitto is not None else 0.0)

    def _connected(self) -> bool:
        try:
            root = psutil.Process(self.child.pid)
            family = [root, *root.children(recursive=True)]
            peers = {peer.raddr.port for each in family for peer in each.net_connections("tcp") if peer.raddr}
        except psutil.NoSuchProcess:
            return False
        return self.task.mqtt.port in peers


@contextmanager
def trial(forwarder: Forwarder, site: Site, workload: Workload, *, wrapped: bool = False) -> Iterator[Trial]:
    """Prepare a trial; at the end the process is gone and the topic deleted."""
    name = f"load-{uuid.uuid4().hex[:12]}"
    folder = site.folder / name
    folder.mkdir()
    with site.topic(name) as topic:
        task = Task(site.forwarders_mqtt, site.kafka, name, name, workload.qos, folder, wrapped)
        command = forwarder.command(task)
        child = Child(forwarder.name, folder / "forwarder.log")
        try:
            yield Trial(site, task, command, topic, child)
        except BrokerError as error:
            raise MeasurementError(str(error)) from error
        finally:
            if child.running:
                child.kill()
