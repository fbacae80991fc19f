"""Bad rows in a training: named and refused, or with --skip-bad-rows left out, counted and named."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from mm.contracts import Position, Source
from mm.core.config.composition import Composition
from mm.core.errors import DataError, UsageError
from mm.core.layers import argument_layer
from mm.core.plugins import PluginManager
from mm.core.workspace import Workspace
from mm.plugins.formats import text
from mm.plugins.sources.files.source import Files
from mm.runtime.data.bad_rows import MAX_NAMED, BadRows
from mm.runtime.data.cache import TokenStore, build_or_open
from mm.runtime.runs import api
from mm.testing import tiny_run, tiny_tokenizer
from mm.testing.pytest_plugin import CommandLine

# line, what stands there, what is said about it
BAD = [(4, '{"text": ""}', "text is empty"), (8, "{", "not JSON"), (10, "[1]", "expected a JSON object, got a list"),
       (13, '{"text": 5}', "text is a number"), (14, '{"texts": "a"}', "no text"), (20, "nul", "not JSON")]  # fmt: skip


def write(path: Path, rows: int = 30, bad: Any = BAD) -> Path:
    lines = {number: line for number, line, _ in bad}
    good = (json.dumps({"text": f"row {number}"}) for number in range(1, rows + 1))
    path.write_text("".join(lines.get(n, line) + "\n" for n, line in enumerate(good, 1)), encoding="utf-8")
    return path


def build(path: Path, **options: Any) -> TokenStore:
    source = Files(None, str(path), "text")
    return build_or_open(
        source, list(text.mm_formats()), tiny_tokenizer(), max_length=16, folder=path.parent / "cache", **options
    )


def test_the_first_bad_rows_are_named(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl")
    with pytest.raises(DataError) as caught:
        build(path)
    *rows, advice = str(caught.value).splitlines()
    assert len(rows) == 5 and caught.value.exit_code == 2
    for row, (line, _, reason) in zip(rows, BAD, strict=False):
        assert row.startswith(f"{path}:{line}: {reason}")
    assert advice.startswith(f"mm data check {path} lists every bad row") and "--fix" in advice
    assert advice.endswith("mm train --skip-bad-rows skips the bad ones.")


def test_a_file_is_not_read_to_its_end_for_more_of_them(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", rows=20_000, bad=BAD[:1])
    seen: list[int] = []
    with pytest.raises(DataError, match=rf"{path}:4: text is empty\nmm data check"):
        build(path, progress=lambda rows, fraction: seen.append(rows))
    assert 2_000 < seen[-1] < 10_000


def test_skipped_rows_are_counted_and_named(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl")
    store = build(path, skip_bad_rows=True)
    assert (len(store), store.info.rows, store.info.bad.count) == (24, 24, 6)
    assert store.info.bad.reasons == {"empty": 1, "not JSON": 2, "wrong type": 2, "missing field": 1}
    lines = {store.position(i).line for i in range(len(store))}
    assert lines == set(range(1, 31)) - {number for number, _, _ in BAD}
    named = [line.partition(": ")[0] for line in store.info.bad.lines()]
    assert named == [f"{path}:{number}" for number, _, _ in BAD]


def test_skipping_and_not_skipping_never_mix(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl")
    build(path, skip_bad_rows=True)
    for _ in range(2):  # what was built without the bad rows is not what is asked for now
        with pytest.raises(DataError, match=rf"{path}:4: text is empty"):
            build(path)
    assert len(build(path, skip_bad_rows=True)) == 24
    # without bad rows both are the same
    good = write(tmp_path / "b.jsonl", bad=[])
    assert build(good).digest == build(good, skip_bad_rows=True).digest


def test_a_file_may_begin_with_bad_rows(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", bad=[(n, "{", "") for n in range(1, 4)])
    assert build(path, skip_bad_rows=True).info.rows == 27
    with pytest.raises(DataError, match=rf"{path}:1: not JSON"):
        build(path)
    path = write(tmp_path / "b.jsonl", bad=[(n, '{"text": ""}', "") for n in range(1, 31)])
    with pytest.raises(DataError, match=rf"(?s){path}:1: .*{path}: none of its 30 rows can be used"):
        build(path, skip_bad_rows=True)


def test_a_damaged_file_is_not_skipped(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"text": "one"}\n' * 20_000)[:-40])
    with pytest.raises(DataError, match="cannot be read"):
        build(path, skip_bad_rows=True)


class Stops(Source):
    """A source of a plugin that knows nothing of going on."""

    def rows(self) -> Iterator[tuple[Position, Mapping[str, Any]]]:
        yield Position(path="stops", line=1), {"text": "one"}
        raise DataError("broken", "stops", 2)

    def digest(self) -> str:
        return "stops"


def test_a_source_that_ends_at_an_error_is_not_cut_short(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="stops:2: broken"):
        build_or_open(
            Stops(None, "stops", "text"), list(text.mm_formats()), tiny_tokenizer(), max_length=16, folder=tmp_path,
            skip_bad_rows=True,
        )  # fmt: skip


def test_only_the_first_are_named_and_all_are_counted() -> None:
    first, second = BadRows(), BadRows()
    for line in range(15):
        first.add("a", line, DataError("no"))
        second.add("b", line, DataError("not", problem="empty"))
    first.update(second)
    assert (first.count, len(first.named), first.reasons) == (30, MAX_NAMED, {"wrong value": 15, "empty": 15})
    assert first.lines()[14:16] == ["a:14: no", "b:0: not"]


def test_a_run_keeps_what_was_skipped(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl")
    run = tiny_run(tmp_path, "pretrain", data=path, skip_bad_rows=True, stop_after_steps=1)
    (part,) = run.manifest["data"]
    assert (part["rows"], part["skipped"], part["skipped_reasons"]["not JSON"]) == (24, 6, 2)
    assert part["skipped_rows"][0] == f"{path}:4: text is empty" and len(part["skipped_rows"]) == 6
    with pytest.raises(UsageError, match=r"--skip-bad-rows is True in this run and cannot change"):
        tiny_run(tmp_path, "pretrain", data=path, resume=True, run=run.name, skip_bad_rows=False)
    resumed = tiny_run(tmp_path, "pretrain", data=path, skip_bad_rows=True, resume=True, run=run.name, data_workers=1)
    assert resumed.manifest["state"] == "finished"


def test_the_command_ends_with_2(mm_cli: CommandLine, tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl")
    words = ["--algo", "pretrain", "--arch", "dense", "--preset", "tiny", "--backend", "cpu", "--data", path]
    said = mm_cli("train", *words, code=2).err
    assert f"mm: {path}:4: text is empty\n{path}:8: not JSON" in said and "Traceback" not in said
    assert not (tmp_path / "runs").exists()


def test_the_plan_says_shares_and_what_is_skipped(tmp_path: Path) -> None:
    a, b = write(tmp_path / "a.jsonl"), write(tmp_path / "b.jsonl", rows=10, bad=[])
    given = {"algo": "pretrain", "arch": "dense", "preset": "tiny", "backend": "cpu", "data": (f"{a}:3", f"{b}:1")}
    plugins = PluginManager.discover(environ={})
    plan = lambda **more: api.plan(  # noqa: E731
        Composition(plugins, [argument_layer(given | more)]), Workspace(tmp_path), say=lambda line: None
    )
    with pytest.raises(DataError, match=f"{a}:4: text is empty"):
        plan()
    found = plan(skip_bad_rows=True)
    assert f"{a} (0.75 of the rows), {b} (0.25 of the rows) without 6 bad rows: 34 rows" in found
    assert sorted(tmp_path.glob("*")) == [a, b]
