"""Model architectures, one per folder, and the decoder that dense and moe share. They import contracts, runtime and core."""
