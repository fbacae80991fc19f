"""`python -m mm`, and the command `mm`: signals are handled before anything slow is imported."""

from __future__ import annotations

import sys

from mm.core.errors import Signalled
from mm.core.say import command_line
from mm.runtime.training.interrupts import install


def main() -> None:
    """Run the command line of this process."""
    install()
    try:
        from mm import cli

        cli.main()
    except Signalled as error:  # before the command line could report it, or while it did
        sys.stderr.write(f"mm: {error}. Start again with: {command_line(*sys.argv[1:])}\n")
        sys.exit(128 + error.number)


if __name__ == "__main__":
    main()
