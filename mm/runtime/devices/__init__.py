"""The contract of a chip and what accelerators have in common. Imports `mm.core` and `runtime.nn`; torch only inside
functions."""
