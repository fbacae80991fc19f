"""The contract of a backend (a chip), and the base of accelerators. Imports `mm.core` and `runtime.nn`; torch only inside
functions."""
