"""The table of faults: what is done, how often in `make test` and in `make chaos`, and what it may cost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.faults import kafka_faults, mqtt_faults, service_faults, store_faults
from tests.faults.history import Cost
from tests.faults.network_faults import (
    conditions,
    crumbs,
    half_open,
    kafka_side,
    late,
    mqtt_side,
    partition,
    reset,
    reset_while_kafka_is_late,
    slow,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tests.faults.run import Case, Run


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of fault. `do` does it and undoes it again; `quick` and `chaos` are how often."""

    name: str
    group: str
    quick: int
    chaos: int
    cost: Cost
    do: Callable[[Run, Case], Awaitable[None]]


# A service that comes back may find a broker that is still busy with its old connection.
_KILLED = Cost(repeats="connection", away=True, blames=("mqtt_",))
_TERMINATED = Cost(away=True, blames=("mqtt_", "kafka_"))
_MQTT_AWAY = Cost(repeats="connection", attaches=True, blames=("mqtt_",))
_MQTT_SLOW = Cost(blames=("mqtt_",))
_KAFKA_AWAY = Cost(repeats="flight", blames=("kafka_",))
_KAFKA_SLOW = Cost(blames=("kafka_",))
_STORE_AWAY = Cost(unready=True, stalls=False)
_NONE = Cost()
# Not attached: what was handed to the network is acknowledged as far as the service knows, or will be.
_MQTT_CUT = Cost(repeats="connection", blames=("mqtt_",))

TABLE = (
    Kind("kill -9", "kill", 3, 40, _KILLED, service_faults.kill),
    Kind("kill -9 between Kafka's ack and the PUBACK", "kill", 3, 40, _KILLED, service_faults.kill_before_puback),
    Kind("kill -9 while pausing", "kill", 2, 40, _KILLED, service_faults.kill_in_pause),
    Kind(
        "SIGTERM without Kafka",
        "SIGTERM",
        1,
        14,
        Cost(repeats="flight", away=True, blames=("kafka_", "mqtt_")),
        service_faults.terminate_without_kafka,
    ),
    Kind(
        "SIGTERM without MQTT",
        "SIGTERM",
        1,
        13,
        Cost(repeats="connection", away=True, blames=("mqtt_",)),
        service_faults.terminate_without_mqtt,
    ),
    Kind("SIGTERM with open API clients", "SIGTERM", 1, 13, _TERMINATED, service_faults.terminate_with_open_clients),
    Kind("MQTT broker restarted", "MQTT", 0, 5, _MQTT_AWAY, mqtt_faults.restart),
    Kind(
        "MQTT broker killed, with persistence",
        "MQTT",
        1,
        6,
        Cost(repeats="connection", blames=("mqtt_",)),
        mqtt_faults.kill_with_persistence,
    ),
    Kind("MQTT broker killed, without persistence", "MQTT", 1, 6, _MQTT_CUT, mqtt_faults.kill_without_persistence),
    Kind("client id taken over", "MQTT", 1, 11, _MQTT_CUT, mqtt_faults.take_over),
    Kind("MQTT broker refuses", "MQTT", 1, 14, _MQTT_AWAY, mqtt_faults.refuse),
    Kind("MQTT broker says DISCONNECT", "MQTT", 1, 28, _MQTT_AWAY, mqtt_faults.disconnect),
    Kind("Kafka killed", "Kafka", 1, 20, _KAFKA_AWAY, kafka_faults.kill),
    Kind("Kafka restarted", "Kafka", 1, 10, _KAFKA_AWAY, kafka_faults.restart),
    Kind("Kafka topic recreated", "Kafka", 1, 20, _KAFKA_AWAY, kafka_faults.recreate_topic),
    Kind("Kafka partitions added", "Kafka", 1, 10, _NONE, kafka_faults.add_partitions),
    Kind("Kafka leader moved", "Kafka", 1, 20, _KAFKA_AWAY, kafka_faults.move_leader),
    Kind("Kafka partition without a leader", "Kafka", 1, 10, _KAFKA_AWAY, kafka_faults.no_leader),
    Kind("partition from MQTT", "network", 1, 8, _MQTT_CUT, partition(mqtt_side)),
    Kind("MQTT connections reset", "network", 0, 4, _MQTT_AWAY, reset(mqtt_side)),
    Kind("MQTT connections reset while Kafka is late", "network", 1, 4, _MQTT_AWAY, reset_while_kafka_is_late),
    Kind("MQTT connections half-open", "network", 0, 8, _MQTT_CUT, half_open(mqtt_side)),
    Kind("MQTT late", "network", 0, 7, _MQTT_SLOW, conditions(mqtt_side, late)),
    Kind("MQTT byte by byte", "network", 1, 7, _MQTT_SLOW, conditions(mqtt_side, crumbs)),
    Kind("MQTT slow", "network", 0, 7, _MQTT_SLOW, conditions(mqtt_side, slow)),
    Kind("partition from Kafka", "network", 0, 8, _KAFKA_AWAY, partition(kafka_side)),
    Kind("Kafka connections reset", "network", 0, 8, _KAFKA_AWAY, reset(kafka_side)),
    Kind("Kafka connections half-open", "network", 1, 8, _KAFKA_AWAY, half_open(kafka_side)),
    Kind("Kafka late", "network", 1, 7, _KAFKA_SLOW, conditions(kafka_side, late)),
    Kind("Kafka byte by byte", "network", 0, 7, _KAFKA_SLOW, conditions(kafka_side, crumbs)),
    Kind("Kafka slow", "network", 1, 7, _KAFKA_SLOW, conditions(kafka_side, slow)),
    Kind(
        "service frozen",
        "SIGSTOP",
        1,
        10,
        Cost(repeats="flight", away=True, blames=("mqtt_", "kafka_")),
        service_faults.freeze,
    ),
    Kind(
        "MQTT broker frozen",
        "SIGSTOP",
        0,
        5,
        Cost(repeats="connection", blames=("mqtt_",), unread=True),
        mqtt_faults.freeze,
    ),
    Kind("Kafka frozen", "SIGSTOP", 1, 5, _KAFKA_AWAY, kafka_faults.freeze),
    Kind("store's disk full", "store", 1, 4, _STORE_AWAY, store_faults.fill_disk),
    Kind("store read-only", "store", 1, 3, _STORE_AWAY, store_faults.read_only),
    Kind("store locked", "store", 1, 4, _STORE_AWAY, store_faults.lock),
    Kind("store's files removed", "store", 1, 4, _STORE_AWAY, store_faults.remove),
)
GROUPS = tuple(dict.fromkeys(kind.group for kind in TABLE))
