"""What runs: one forwarder per mapping, one supervisor for all of them."""
