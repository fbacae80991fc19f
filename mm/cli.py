"""The command line. Subcommands are plugins; this module only finds and runs them, and reports errors."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from mm.core.errors import Interrupted, MMError, StorageError, UsageError, close_match
from mm.core.plugins import PluginManager
from mm.core.records import CommandSpec
from mm.core.say import command_line, on_stderr
from mm.plugins.commands.stale import stale_parts
from mm.runtime.models.storage import storage_error
from mm.runtime.training.interrupts import explain_exit, install, number_of

_HELP = """Train, convert and run small language models, on CPU, CUDA or Ascend NPU.

\b
  -p no:NAME       block a part, a kind.part or a distribution
  -p ./file.py     load a plugin from a file (anywhere on the line)
"""


class _OutputClosed(Exception):
    """The reader of the output has closed it, as `| head` does."""


class _Stopped(Exception):
    """A KeyboardInterrupt, which is its cause."""


class Commands(click.Group):
    """The subcommands that plugins provide; each is imported when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names by kind `command`."""
        return [spec.name for spec in ctx.obj.specs(CommandSpec)]

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        """The click command of that name, or None."""
        if name not in self.list_commands(ctx):
            return None
        command: click.Command = ctx.obj.load(CommandSpec, name)
        return command

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        """As in click, but an unknown name raises UsageError with close matches, or says that its plugin is blocked or broken."""
        if args and not args[0].startswith("-"):
            ctx.obj.get(CommandSpec, args[0])
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """As in click, which would itself handle a closed output pipe, with exit code 1, and print a line for Ctrl-C."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            raise _OutputClosed from None
        except KeyboardInterrupt as error:
            raise _Stopped from error

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands from their records, without importing any."""
        with formatter.section("Commands"):
            formatter.write_dl([(spec.name, spec.summary) for spec in ctx.obj.specs(CommandSpec)])


@click.command(cls=Commands, help=_HELP, context_settings={"help_option_names": ["-h", "--help"]}, no_args_is_help=True)
@click.version_option(package_name="minimind-ascend", prog_name="mm")
def mm() -> None:
    """The command `mm`, whose subcommands these are."""


def split_plugin_options(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """The values of `-p`, anywhere before `--`, and the other words of the line."""
    plugins: list[str] = []
    rest: list[str] = []
    words = iter(argv)
    for word in words:
        if word == "--":
            return plugins, [*rest, word, *words]
        if word == "-p":
            value = next(words, None)
            if value is None:
                raise UsageError("-p needs a value: no:NAME, a .py file or a module.")
            plugins.append(value)
        else:
            rest.append(word)
    return plugins, rest


def run(argv: Sequence[str]) -> int:
    """Run one command line. Returns the exit code."""
    manager: PluginManager | None = None
    try:
        options, rest = split_plugin_options(argv)
        with contextlib.redirect_stdout(sys.stderr):  # of what a plugin prints while it is imported
            manager = PluginManager.discover(options)
        _warn(manager)
        ended = mm.main(rest, prog_name="mm", standalone_mode=False, obj=manager)
        return ended if type(ended) is int else 0  # click returns the code of `ctx.exit`
    except click.NoSuchOption as error:
        near = close_match(error.option_name, [o for p in (error.ctx.command.params if error.ctx else []) for o in p.opts])
        return _report(f"No such option: {error.option_name}.{near}", 2)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        return error.exit_code
    except click.ClickException as error:
        return _report(" ".join(error.format_message().split()), error.exit_code)  # click's own may have several lines
    except MMError as error:
        again = f" {_start_again(argv)}" if isinstance(error, Interrupted) and not error.again else ""
        return _report("\n".join([f"{error}{again}", *_notes(error)]), error.exit_code)
    except _Stopped as error:
        return _report_stop(error.__cause__, argv)
    except KeyboardInterrupt as error:
        return _report_stop(error, argv)
    except click.Abort:
        return _report("interrupted", 130)
    except SystemExit as error:
        return _report(str(explain_exit(error)), 1)
    except _OutputClosed:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except Exception as error:
        if isinstance(error, OSError) and (message := _write_failure(error)):
            return _report(message, StorageError.exit_code)
        _add_plugin_note(error, manager)
        traceback.print_exception(error)
        return 1


def main() -> None:
    """The console script."""
    install()
    code = run(sys.argv[1:])
    install(signal.SIG_IGN)  # nothing is left to stop
    if any(thread.daemon and thread.name.startswith("mm-") for thread in threading.enumerate()):
        # a second interrupt does not wait for a checkpoint; its thread, still running while the interpreter ends, may abort that
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def _report(message: str, code: int) -> int:
    on_stderr(f"mm: {message}")
    return code


def _report_stop(error: BaseException | None, argv: Sequence[str]) -> int:
    """Report a command that a signal ended at once, in one line, with the command that starts it again."""
    notes = "".join(f", {note}" for note in _notes(error))
    return _report(f"{str(error) or 'interrupted'}{notes}. {_start_again(argv)}", 128 + number_of(error))


def _start_again(argv: Sequence[str]) -> str:
    return f"Start again with: {command_line(*argv)}"


def _notes(error: BaseException | None) -> Sequence[str]:
    return getattr(error, "__notes__", ())


def _write_failure(error: OSError) -> str:
    """The message for a failed write, of the command's output or of a file; "" for another error. The rest of an output that
    fails is discarded, so that it does not fail again when the interpreter ends."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    if error.filename is None and storage_error(error):  # whatever writes a file names it
        return f"The output cannot be written: {error.strerror}. What the command had saved by then is complete."
    return str(storage_error(error) or "")


def _warn(manager: PluginManager) -> None:
    broken = manager.broken()
    for plugin in broken[:3]:
        show = command_line("plugins", plugin.name, plugins=manager.options)
        click.echo(f"mm: broken: {plugin.name}: {plugin.reason}; {show} shows the traceback", err=True)
    if len(broken) > 3:
        click.echo(f"mm: broken: {len(broken) - 3} more; mm plugins lists them", err=True)
    if stale := stale_parts(Path(__file__).parent):
        names = ", ".join(stale[:3])
        click.echo(f"mm: the installed entry points do not match the source ({names}): run pip install -e .", err=True)


def _add_plugin_note(error: BaseException, manager: PluginManager | None) -> None:
    """Add a note naming the plugin whose code raised: that of the deepest frame in the package of a third-party plugin."""
    if manager is None:
        return
    owners = {p.value.partition(".")[0]: p.name for p in manager.plugins if not p.value.startswith("mm.")}
    for frame, _ in reversed(list(traceback.walk_tb(error.__traceback__))):
        package = str(frame.f_globals.get("__name__", "")).partition(".")[0]
        if package in owners:
            error.add_note(f"raised in plugin {owners[package]}")
            return
