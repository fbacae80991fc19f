"""Reading a command line by the options that are known: one reader for the commands that compose parts and for `mm run`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs
import pytest
from click.testing import CliRunner
from hypothesis import given, strategies as st

from mm.cli import mm
from mm.core.errors import UsageError
from mm.core.layers import merge
from mm.core.options import option, options_of
from mm.core.plugins import PluginManager
from mm.plugins.commands.line import Line, read_line


@attrs.frozen(kw_only=True)
class Config:
    """One option of each kind that a line tells apart."""

    flag: bool = option(False, help="A flag.")
    no_rest: bool = option(False, help="A flag whose name begins like a negation.")
    word: str = option("", help="A word.")
    count: int = option(0, help="A number.")
    name: tuple[str, ...] = option((), help="A list.")


KNOWN = {o.key: o for o in options_of(Config, section="x")}


@pytest.mark.parametrize(
    ("line", "values", "rest"),
    [
        (["--flag", "sft"], {"flag": "true"}, ["sft"]),
        (["--no-flag", "sft"], {"flag": "false"}, ["sft"]),
        (["--flag=off"], {"flag": "off"}, []),
        (["--no-rest"], {"no_rest": "true"}, []),
        (["--no-no-rest"], {"no_rest": "false"}, []),
        (["a", "--word", "b", "c"], {"word": "b"}, ["a", "c"]),
        (["--word=a=b", "--word="], {"word": ""}, []),
        (["--word", "--- or so", "--word", "-- x"], {"word": "-- x"}, []),
        (["--word=--flag"], {"word": "--flag"}, []),
        (["--count", "-1"], {"count": "-1"}, []),
        (["--name", "a", "--name=b,c"], {"name": ("a", "b,c")}, []),
        (["--no-word", "--other", "x", "-h"], {}, ["--no-word", "--other", "x", "-h"]),
        (["--flag", "--", "--word", "x"], {"flag": "true"}, ["--", "--word", "x"]),
        ([], {}, []),
    ],
)
def test_what_is_known_is_taken_and_the_rest_is_left(line: list[str], values: dict[str, Any], rest: list[str]) -> None:
    assert read_line(line, KNOWN) == (values, rest)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (["--word"], "Option --word needs a value."),
        (["--word", "--"], "Option --word needs a value."),
        (["--word", "--flag"], "Option --word needs a value. If --flag is the value, write --word=--flag."),
    ],
)
def test_an_option_is_no_value(line: list[str], message: str) -> None:
    with pytest.raises(UsageError) as error:
        read_line(line, KNOWN)
    assert str(error.value) == message


@given(st.lists(st.sampled_from(["--flag", "--no-flag", "--word=a", "--count=3", "--name=x", "--name=y", "stage", "--other"])))
def test_options_may_be_read_one_by_one(words: list[str]) -> None:
    """Which other options are known decides nothing about an option's value."""
    values, _ = read_line(words, KNOWN)
    apart = {key: value for key, option_ in KNOWN.items() for value in read_line(words, {key: option_})[0].values()}
    assert apart == values
    layer = Line(words=words)
    for option_ in KNOWN.values():
        merge([layer], [option_])
    assert layer.values == values


def test_a_shell_completes_the_options_of_the_parts(tmp_path: Path) -> None:
    plugins = PluginManager.discover(environ={})
    words = {"MM_WORKSPACE": str(tmp_path), "_MM_COMPLETE": "bash_complete", "COMP_CWORD": "4"}
    found = CliRunner(env={**words, "COMP_WORDS": "mm train --algo dpo --b"}).invoke(mm, [], prog_name="mm", obj=plugins)
    assert found.output.split() == ["plain,--backend", "plain,--background-save", "plain,--beta"]
