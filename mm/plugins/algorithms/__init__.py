"""Training algorithms, a folder each; the module beside them is shared by several. They import contracts, runtime and core."""
