"""The stages of `mm run`, a folder each, and what those that train share. They import contracts, runtime, core
and evaluations."""
