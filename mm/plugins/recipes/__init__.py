"""Recipes: settings of trainings by name, for `--config`."""
