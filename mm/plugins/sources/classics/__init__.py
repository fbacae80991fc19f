"""Real text that may be passed on: classical Chinese and chapters of Moby-Dick."""
