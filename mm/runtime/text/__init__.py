"""Messages, chat templates, tokenizers, rows, and reading what a model wrote. Imports `mm.core`, and no torch."""
