"""Messages, chat templates, tokenizers, typed rows, and the parsing of model replies. Imports `mm.core`, and no torch."""
