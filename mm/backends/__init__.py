"""The built-in backends, one folder per chip. They import contracts, runtime and core."""
