"""Learning from completions that the policy samples itself: sampling, scoring, advantages, log-probabilities, mini-batches,
losses, metrics, and the base class that composes them. Imports no torch at its top, and the floors up to `runtime.training`."""
