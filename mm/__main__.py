"""`python -m mm`."""

from mm.cli import main

main()
