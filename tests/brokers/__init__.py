"""Real brokers as processes of the test run: Mosquitto, Kafka and Postgres, with everything a test may do to them."""

from tests.brokers.kafka import Kafka, KafkaCluster, Record
from tests.brokers.kafka_nodes import KafkaNodes
from tests.brokers.mosquitto import Mosquitto, MqttBroker
from tests.brokers.postgres import Postgres
from tests.brokers.process import BrokerError, free_port

__all__ = [
    "BrokerError",
    "Kafka",
    "KafkaCluster",
    "KafkaNodes",
    "Mosquitto",
    "MqttBroker",
    "Postgres",
    "Record",
    "free_port",
]
