"""The built-in recipes: settings of trainings by name, for `--config`. They import core and nothing else."""
