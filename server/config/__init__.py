"""The configuration file: loading, interpolation, and what changed since last time."""
