"""Packed batches, attention over them, output heads, optimizers: functions of tensors. Imports `mm.core` and torch."""
