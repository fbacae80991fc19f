"""The checks that every command must pass. Each runs the command line in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from typing import Any, ClassVar

import click

from mm.core.records import CommandSpec
from mm.testing.suites.running import about
from mm.testing.suites.suite import HEAVY, Suite

_UNKNOWN = "--surely-no-such-option"
_RUN = """
import sys
from mm import cli
code = cli.run(sys.argv[2:])
sys.stdout.flush()
loaded = [name for name in sys.argv[1].split(",") if name in sys.modules]
print(f"\\n{code} {' '.join(loaded)}", file=sys.stderr)
"""


class CommandSuite(Suite):
    """The checks of a command. `option` is the value of `-p` with which `mm` finds its plugin; "" if it is installed."""

    declarations: ClassVar[tuple[str, ...]] = ("check_command",)
    first: ClassVar[tuple[str, ...]] = ("check_target", "check_command")

    def __init__(self, spec: CommandSpec, option: str = "", module: str | None = None) -> None:
        super().__init__(spec, module)
        self.option = option

    def check_command(self) -> None:
        """The target is a click command with a sentence of help."""
        command: Any = self.spec.load()
        assert isinstance(command, click.Command), f"{self.spec.target} is a {type(command).__name__}, not a click command"
        said = (command.help or "").strip()
        assert said, "the command has no help: its function needs a docstring"

    def check_help(self) -> str:
        """`--help` explains the command and exits with 0, and loads none of torch, transformers, numpy and pandas."""
        code, loaded, out, err = self._mm("--help")
        assert code == 0, f"--help exits with {code}: {_last(err)}"
        assert "Usage: mm" in out, f"--help prints {out[:80]!r}"
        assert not loaded, f"--help loads {', '.join(loaded)}: import it in the function that needs it"
        return out.partition("\n")[0]

    def check_unknown_option(self) -> None:
        """An unknown option exits with 2 and a message, without a traceback."""
        code, _, out, err = self._mm(_UNKNOWN)
        assert "Traceback" not in err, f"{_UNKNOWN} is a traceback: {_last(err)}"
        assert code == 2, f"{_UNKNOWN} exits with {code}, not 2: {_last(err or out)}"

    @about("params")
    def check_options_have_help(self) -> str:
        """Every option has a sentence of help."""
        command: click.Command = self.spec.load()
        options = [p for p in command.params if isinstance(p, click.Option) and not p.hidden]
        silent = [option.opts[0] for option in options if not (option.help or "").strip()]
        assert not silent, f"{', '.join(silent)} has no help"
        return f"{len(options)} options"

    def _mm(self, *words: str) -> tuple[int, list[str], str, str]:
        """(exit code, heavy modules that were loaded, standard output, standard error) of `mm NAME WORDS`."""
        plugin = ["-p", self.option] if self.option else []
        argv = [sys.executable, "-c", _RUN, ",".join(HEAVY), *plugin, self.spec.name, *words]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=120)
        err, _, last = done.stderr.rstrip().rpartition("\n")
        code, _, loaded = last.partition(" ")
        assert code.isdigit(), f"mm {self.spec.name} {' '.join(words)} ended its process: {_last(done.stderr)}"
        return int(code), loaded.split(), done.stdout, err


def _last(text: str) -> str:
    return text.strip().rpartition("\n")[2]
