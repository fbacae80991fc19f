"""A mistake on the command line is one line, whoever words it."""

from __future__ import annotations

from mm.testing.pytest_plugin import CommandLine


def test_clicks_own_messages_are_one_line(mm_cli: CommandLine) -> None:
    told = mm_cli("plugins", "new", "jplug", "--json", code=2)
    (line,) = [line for line in told.err.splitlines() if line.startswith("mm: Missing")]
    assert line.startswith("mm: Missing option '--kind'. Choose from: ")
    assert "\t" not in told.err and "algorithm" in line
