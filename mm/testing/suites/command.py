"""The checks that every command must pass. Each runs the command line in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from typing import Any, ClassVar

import click

from mm.core.records import CommandSpec
from mm.testing.suites.check import Skip
from mm.testing.suites.running import about
from mm.testing.suites.suite import HEAVY, Suite

_UNKNOWN, _WORD = "--surely-no-such-option", "surely-no-such-word"
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
        self.require("check_declaration_is_light")
        code, loaded, out, err = self._mm("--help")
        assert code == 0, f"--help exits with {code}: {_last(err)}"
        assert "Usage: mm" in out, f"--help prints {out[:80]!r}"
        assert not loaded, f"--help loads {', '.join(loaded)}: import it in the function that needs it"
        return out.partition("\n")[0]

    def check_unknown_option(self) -> None:
        """An unknown option exits with 2 and the message that there is no such option, without a traceback."""
        code, _, out, err = self._mm(_UNKNOWN)
        assert "Traceback" not in err, f"{_UNKNOWN} is a traceback: {_last(err)}"
        cure = ": take ignore_unknown_options out of its context_settings" if self._has("ignore_unknown_options") else ""
        assert code == 2, f"{_UNKNOWN} exits with {code}, not 2{cure or f': {_last(err or out)}'}"
        assert "No such option" in err, f"{_UNKNOWN} gives {_last(err)!r}, not 'No such option'{cure}"

    def check_unknown_argument(self) -> str:
        """A word too many is named, and exits with 2, also where `allow_extra_args` lets it through to the function."""
        self.require("check_unknown_option")
        command: click.Command = self.spec.load()
        sizes = [parameter.nargs for parameter in command.params if isinstance(parameter, click.Argument)]
        if isinstance(command, click.Group) or -1 in sizes or not self._has("allow_extra_args"):
            return ""  # click itself names the word, or the command takes any number of them
        code, _, _, err = self._mm(*[_WORD] * (sum(sizes) + 1))
        if code == 2 and _WORD not in err:
            raise Skip(f"a word too many cannot be tried: {_last(err)}")
        told = f"{_WORD} exits with {code}, and the word is ignored: take allow_extra_args out of context_settings"
        assert code == 2, f"{told}, or refuse ctx.args"
        return ""

    def _has(self, setting: str) -> bool:
        command: click.Command = self.spec.load()
        return bool(command.context_settings.get(setting, getattr(command, setting, False)))

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
