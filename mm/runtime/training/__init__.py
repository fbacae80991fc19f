"""The training loop and what it works on: state, roles, objective, checkpoints, metrics, callbacks. Imports `mm.core` and the
floors up to `runtime.generation`."""
