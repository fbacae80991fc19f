"""Recorders of metrics. Each folder imports contracts, runtime and core."""
