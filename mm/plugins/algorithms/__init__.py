"""Training algorithms, one per folder; `next_token` is shared by several. They import contracts, runtime and core."""
