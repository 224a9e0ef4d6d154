"""How do records move? One contract (`log`), one file for each place that keeps it."""
