"""Rewards, one folder each; the modules beside the folders are shared. They import contracts, runtime and core."""
