"""Generation engines. Each folder imports contracts, runtime and core."""
