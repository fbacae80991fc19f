"""Sources of rows: files, and the corpora of the project. They import contracts, runtime and core."""
