"""Sources of rows: files, and the corpora that come with the project. They import contracts, runtime and core."""
