"""The callbacks that come with the training loop: progress bar, early stopping, best model, samples, profile, watchdog.

Imports what `mm.runtime.training` imports, and its modules.
"""
