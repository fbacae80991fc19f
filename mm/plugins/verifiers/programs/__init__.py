"""The programs of the engines. Each is called by its path in the engine's own environment, and imports no mm."""
