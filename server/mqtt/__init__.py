"""The MQTT side: one port, two protocols behind it."""
