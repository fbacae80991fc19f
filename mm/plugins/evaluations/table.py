"""Reports of several models side by side, as one table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table

Report = dict[str, Any]
_NAMED = 4  # suites at most that a row names
_MOVED = "what each stage moved: n new items of the suites that its data teaches; rest: those of all other suites"


def table_of(reports: Sequence[Report]) -> Table:
    """A row for each figure, a column for each report; shares with Wilson's 95% interval."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    table.add_column("figure")
    table.add_column("items", justify="right")
    for report in reports:
        table.add_column(report["model"]["name"], justify="right")
    for index, text in enumerate(reports[0].get("text", ())):
        found = [report["text"][index] for report in reports]
        table.add_row(f"{text['data']}", f"{text['documents']:,}", *["" for _ in reports])
        table.add_row("  perplexity", "", *(f"{t['perplexity']:.4g}" for t in found))
        table.add_row("  bits per byte", "", *(f"{t['bits_per_byte']:.4f}" for t in found))
        table.add_row("  learned tokens", "", *(f"{t['tokens']:,}" for t in found))
    if "skills" in reports[0]:
        table.add_row(f"skills, {reports[0]['settings']['split']} split", "", *["" for _ in reports])
    for index, figure in enumerate(reports[0].get("skills", ())):
        tier = f"{figure['tier']} (recall)" if figure["tier"] == "seen" else figure["tier"]
        cells = [_share(report["skills"][index]) for report in reports]
        table.add_row(f"  {figure['suite']}, {tier}", str(figure["total"]), *cells)
    return table


def notes_of(reports: Sequence[Report]) -> list[str]:
    """What the reader of the table should know."""
    notes = []
    if "text" in reports[0] and len({r["model"]["tokenizer"] for r in reports}) > 1:
        notes.append("The models have different tokenizers: compare bits per byte, not perplexities.")
    for text in reports[0].get("text", ()):
        if text["truncated"]:
            notes.append(f"{text['data']}: {text['truncated']:,} rows were cut at --max-length.")
    return notes


def print_reports(reports: Sequence[Report], *, stderr: bool = False) -> None:
    """The table and its notes."""
    from rich.console import Console

    console = Console(stderr=stderr)
    console.print(table_of(reports))
    for note in notes_of(reports):
        console.print(note, highlight=False)


def print_moved(lines: Sequence[dict[str, Any]], stages: Sequence[str]) -> None:
    """What each stage moved, on stderr; `stages` are all, of which some may have no line."""
    from rich.console import Console

    console = Console(stderr=True)
    if lines:
        console.print(f"\n{_MOVED}", soft_wrap=True)
        console.print(moved_table(lines))
    if missing := [stage for stage in stages if stage not in {line["stage"] for line in lines}]:
        console.print(f"Not on rows of this skills corpus, so without a line: {', '.join(missing)}.", highlight=False)


def moved_table(lines: Sequence[dict[str, Any]]) -> Table:
    """A row a stage."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    table.add_column("stage", no_wrap=True)
    table.add_column("teaches", overflow="fold")
    for column in ("n", "before", "after", "rest", "after"):
        table.add_column(column, justify="right", no_wrap=True)
    for line in lines:
        suites = ", ".join(line["suites"]) if len(line["suites"]) <= _NAMED else f"{len(line['suites'])} suites"
        others = [f"{f['share']:.2f}" if f else "-" for f in (line["others_before"], line["others_after"])]
        shares = [_share(f) if f else "-" for f in (line["before"], line["after"])]
        table.add_row(line["stage"], suites, str(line["after"]["total"]), *shares, *others)
    return table


def _share(figure: dict[str, Any]) -> str:
    return f"{figure['share']:.2f} [{figure['low']:.2f}, {figure['high']:.2f}]"
