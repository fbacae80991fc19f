"""One run from its settings to its finished folder, plans, and pipelines of stages. Imports `mm.core` and all floors of the
runtime."""
