"""Model architectures, a folder each, and the decoder that dense and moe share. They import contracts, runtime and core."""
