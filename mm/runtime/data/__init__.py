"""From sources to tokens: reading rows, encoding them, the token cache, and the order in which they come. Imports `mm.core`,
`runtime.nn` and `runtime.text`."""
