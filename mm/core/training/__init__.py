"""The part of core that needs torch: batches, roles, optimizers, the one loop, checkpoints."""
