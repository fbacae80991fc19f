"""Rewards, a folder each; modules beside them are shared by several. They import contracts, runtime and core."""
