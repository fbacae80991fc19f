"""Engines, rewards and tools: drawing completions, scoring them, and turns in which tools are called. Imports `mm.core` and the
floors up to `runtime.models`."""
