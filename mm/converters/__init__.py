"""The checkpoint formats that come with the project, a folder each, and the tables that they share. Imports contracts, runtime
and core."""
