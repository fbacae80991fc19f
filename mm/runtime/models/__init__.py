"""Model folders, converters and adapters: opening a model, saving it, writing it in another format. Imports `mm.core` and the
floors of nn, text, data and devices."""
