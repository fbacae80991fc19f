"""The options of a command whose ranks are started here, and how the command ends with them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import click

from mm.core.say import on_stderr
from mm.plugins.commands.line import COMMAND_LINE
from mm.runtime.runs.launch_report import Ended
from mm.runtime.runs.launch_settings import LAUNCH, LaunchSettings, read_launch

F = TypeVar("F", bound=Callable[..., Any])


def launching(command: F) -> F:
    """Adds the options of `LaunchSettings`, whose texts the command is given as keyword arguments for `settings_of`."""
    for option in reversed(LAUNCH):
        default = f"  [default: {option.default}]" if option.default != "" else ""
        metavar = "TEXT" if option.base_type is str else "INT"
        command = click.option(option.flag, option.key, metavar=metavar, help=option.info.help + default)(command)
    return command


def settings_of(texts: Mapping[str, Any]) -> LaunchSettings:
    """The settings that the line gives. Raises UsageError for an invalid one."""
    return read_launch(texts, COMMAND_LINE)


def end_as(ctx: click.Context, ended: Ended) -> None:
    """End the command as its ranks have ended."""
    if ended.message:
        on_stderr(f"mm: {ended.message}")
    if ended.code:
        ctx.exit(ended.code)
