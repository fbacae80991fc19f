"""Tools that models can call, a folder each, and the canned results that several give. They import contracts, runtime and
core."""
