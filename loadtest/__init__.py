"""The load tool: publishes to MQTT, reads from Kafka, and so measures any forwarder between the two."""
