"""The built-in checkpoint formats, one folder each, and the tables that they share. They import contracts, runtime and core."""
