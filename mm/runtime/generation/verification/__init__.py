"""Trying a written model in the program that it was written for: `mm convert --verify`.

It imports what `mm.runtime.generation` may.
"""
