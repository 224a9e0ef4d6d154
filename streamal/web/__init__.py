"""What do people and probes see? Frozen facts of the worker, read and never changed: metrics, health, status."""
