"""The core: it knows kinds of parts, never members."""
