"""Trackers, which record the metrics of a run. Each folder imports contracts, runtime and core."""
