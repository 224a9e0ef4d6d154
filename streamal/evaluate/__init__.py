"""Was it worth it? Labelled streams, simulation with the very core that serves, and honest reports."""
