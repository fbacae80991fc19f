"""The chips that come with the project, a folder each. Imports contracts, runtime and core."""
