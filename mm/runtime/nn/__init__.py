"""Packed batches, the contracts of models, caches and kernels, attention, output heads, optimizers. Imports `mm.core`, torch."""
