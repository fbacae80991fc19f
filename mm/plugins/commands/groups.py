"""Groups of commands whose help lists each command with the whole first sentence of its description."""

from __future__ import annotations

import click


class CommandGroup(click.Group):
    """A click group. Click itself cuts the descriptions of its commands to the width of the terminal."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write each command and the first sentence of its help, over several lines if it does not fit one."""
        commands = [command for name in self.list_commands(ctx) if (command := self.get_command(ctx, name))]
        with formatter.section("Commands"):
            formatter.write_dl([(command.name or "", _first_sentence(command.help or "")) for command in commands])


def _first_sentence(text: str) -> str:
    first, dot, _ = " ".join(text.split("\n\n")[0].split()).partition(". ")
    return first + dot.strip()
