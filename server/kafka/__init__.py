"""The Kafka side: batching and the producer life cycle."""
