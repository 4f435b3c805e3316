"""Real brokers as processes of the test run: Mosquitto and Kafka, with everything a test may do to them."""

from tests.brokers.kafka import Kafka, KafkaCluster, Record
from tests.brokers.kafka_nodes import KafkaNodes
from tests.brokers.mosquitto import Mosquitto, MqttBroker
from tests.brokers.process import BrokerError, free_port

__all__ = ["BrokerError", "Kafka", "KafkaCluster", "KafkaNodes", "Mosquitto", "MqttBroker", "Record", "free_port"]
