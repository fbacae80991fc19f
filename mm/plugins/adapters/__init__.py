"""Adapters. Each folder imports contracts, runtime and core."""
