"""Data, models and tokenizers of the model hubs: what a `hub:` or `ms:` text names, and its files in the user's cache.

Imports no client of a hub before one is asked for.
"""
