"""From sources to tokens: reading rows, encoding them, the token cache, and the order in which rows are trained on.

Imports `mm.core`, `runtime.nn` and `runtime.text`.
"""
