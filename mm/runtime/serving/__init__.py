"""The server: models behind HTTP, with one thread per model that steps its engine. Imports `mm.core` and the floors up to
`runtime.generation`; `runtime.runs` is beside it, and neither imports the other."""
