"""Tables of evaluation reports: several models side by side, and the effects of stages."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import attrs

from mm.runtime.generation.options import DEFAULTS

if TYPE_CHECKING:
    from rich.table import Table

Report = dict[str, Any]
_MOST_NAMED = 4  # a row names its suites if it has at most so many


def table_of(reports: Sequence[Report]) -> Table:
    """A row for each metric, a column for each report; shares with Wilson's 95% interval."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    table.add_column("metric")
    table.add_column("items", justify="right")
    for report in reports:
        table.add_column(report["model"]["name"], justify="right")
    for index, text in enumerate(reports[0].get("text", ())):
        results = [report["text"][index] for report in reports]
        table.add_row(f"{text['data']}", f"{text['documents']:,}", *["" for _ in reports])
        table.add_row("  perplexity", "", *(f"{t['perplexity']:.4g}" for t in results))
        table.add_row("  bits per byte", "", *(f"{t['bits_per_byte']:.4f}" for t in results))
        table.add_row("  learned tokens", "", *(f"{t['tokens']:,}" for t in results))
    if "skills" in reports[0]:
        table.add_row(f"skills, {reports[0]['settings']['split']} split", "", *["" for _ in reports])
    for index, share in enumerate(reports[0].get("skills", ())):
        tier = f"{share['tier']} (recall)" if share["tier"] == "seen" else share["tier"]
        cells = [_share_text(report["skills"][index]) for report in reports]
        table.add_row(f"  {share['suite']}, {tier}", str(share["total"]), *cells)
    return table


def notes_of(reports: Sequence[Report]) -> list[str]:
    """Notes below the table: metrics that cannot be compared, and rows that were cut."""
    notes = []
    if "text" in reports[0] and len({r["model"]["tokenizer"] for r in reports}) > 1:
        notes.append("The models have different tokenizers: compare bits per byte, not perplexities.")
    for text in reports[0].get("text", ()):
        if text["truncated"]:
            notes.append(f"{text['data']}: {text['truncated']:,} rows were cut at --max-length.")
    if "skills" in reports[0] and (given := answer_flags(reports[0]["settings"])):
        notes.append(f"Skills were asked with {given}.")
    return notes


def answer_flags(settings: Mapping[str, Any]) -> str:
    """The options of answers that differ from their defaults in the settings of a report, as on a command line."""
    defaults = {**attrs.asdict(DEFAULTS), "open_thinking": None}
    given = {name: settings[name] for name, default in defaults.items() if settings.get(name, default) not in (default, [])}
    flags = ((f"--{name.replace('_', '-')}", value) for name, value in given.items())
    items = ((flag, item) for flag, value in flags for item in (value if isinstance(value, list | tuple) else [value]))
    return " ".join(f"{flag} {json.dumps(item, ensure_ascii=False)}" for flag, item in items)


def print_reports(reports: Sequence[Report]) -> None:
    """Print the table and its notes."""
    from rich.console import Console

    console = Console()
    console.print(table_of(reports))
    for note in notes_of(reports):
        console.print(note, highlight=False)


def as_text(table: Table, width: int) -> str:
    """A table as plain text, of at most `width` characters per line."""
    from io import StringIO

    from rich.console import Console

    file = StringIO()
    Console(file=file, width=width).print(table)
    return file.getvalue()


def unlisted(effects: Sequence[dict[str, Any]], stages: Sequence[str]) -> list[str]:
    """A line that names those of the `stages` that have no entry in `effects`; none if all have one."""
    missing = [stage for stage in stages if stage not in {effect["stage"] for effect in effects}]
    return [f"Not trained on this skills corpus, so not listed: {', '.join(missing)}."] if missing else []


def suites_text(effect: Mapping[str, Any]) -> str:
    """The suites that a stage's data teaches, or their number if there are many."""
    suites = effect["suites"]
    return ", ".join(suites) if len(suites) <= _MOST_NAMED else f"{len(suites)} suites"


def stage_effects_table(effects: Sequence[dict[str, Any]]) -> Table:
    """A row for each stage."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    table.add_column("stage", no_wrap=True)
    table.add_column("teaches", overflow="fold")
    for column in ("n", "before", "after", "rest", "after"):
        table.add_column(column, justify="right", no_wrap=True)
    for effect in effects:
        others = [f"{share['share']:.2f}" if share else "-" for share in (effect["others_before"], effect["others_after"])]
        shares = [_share_text(share) if share else "-" for share in (effect["before"], effect["after"])]
        table.add_row(effect["stage"], suites_text(effect), str(effect["after"]["total"]), *shares, *others)
    return table


def _share_text(share: dict[str, Any]) -> str:
    return f"{share['share']:.2f} [{share['low']:.2f}, {share['high']:.2f}]"
