"""MQTT to Kafka forwarder."""
