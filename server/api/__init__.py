"""The REST API, probes and metrics."""
