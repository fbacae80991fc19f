"""Built-in parts of this kind; each folder here is one part and one entry point in setup.py."""
