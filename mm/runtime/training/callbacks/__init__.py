"""The callbacks that come with the loop: progress bar, early stopping, best model, samples, profile, watchdog. Imports what
`runtime.training` imports, and its modules."""
