"""Finds parts and composes a Run from them; knows kinds of parts and no member of one. Imports nothing above it and no torch."""
