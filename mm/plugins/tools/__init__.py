"""Tools that models can call, one folder each, and the made-up results that several return. They import contracts, runtime
and core."""
