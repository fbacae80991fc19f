"""`mm data` and `mm tokenizer`, with the parts they need and no others."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from mm.contracts import Position, Source
from mm.core.errors import DataError, UsageError
from mm.core.records import SourceSpec
from mm.core.spec import Spec
from mm.plugins.commands.data.command import data
from mm.plugins.commands.tokenizer.command import tokenizer
from mm.plugins.formats import chat, text
from mm.plugins.sources import files
from mm.runtime.text.tokenizer import Tokenizer


class Greetings(Source):
    """A built-in source that gives two kinds of rows and can write them."""

    def rows(self) -> Iterator[tuple[Position, Mapping[str, Any]]]:
        turns = [{"role": "user", "content": "greet"}, {"role": "assistant", "content": "zebra zebra zebra"}]
        row = {"messages": turns} if self.row_kind == "chat" else {"text": "quagga quagga quagga"}
        for line in range(1, 9):
            yield Position(path="greetings", line=line), row

    def digest(self) -> str:
        return "greetings"

    def make(self, folder: Path, seed: int) -> dict[str, int]:
        folder.mkdir(parents=True)
        (folder / "sft.jsonl").write_text(str(seed))
        return {"sft.jsonl": 8}


class Parts:
    """As much of a plugin manager as the commands use."""

    greetings = SourceSpec(
        name="greetings", summary="", target=f"{__name__}:Greetings", recognise="greetings".__eq__, provides=("text", "chat", "x")
    )  # fmt: skip

    def __init__(self) -> None:
        self.found: list[Spec] = [*text.mm_formats(), *chat.mm_formats(), *files.mm_sources(), self.greetings]

    def specs(self, record: type[Spec]) -> list[Spec]:
        return [spec for spec in self.found if isinstance(spec, record)]

    def owned(self, record: type[Spec]) -> list[tuple[None, Spec]]:
        return [(None, spec) for spec in self.specs(record)]

    def get(self, record: type[Spec], name: str) -> Spec:
        for spec in self.specs(record):
            if spec.name == name:
                return spec
        raise UsageError(f"Unknown {record.kind} {name!r}.")

    def load(self, record: type[Spec], name: str) -> Any:
        return self.get(record, name).load()


def run(command: Any, *words: str) -> Result:
    return CliRunner().invoke(command, words, obj=Parts(), catch_exceptions=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("made") / "tokenizer"
    run(tokenizer, "train", "greetings", "--vocab-size", "300", "--out", str(out))
    return out


def test_a_tokenizer_is_trained_on_all_kinds_that_give_text(folder: Path) -> None:
    made = Tokenizer.load(folder)
    assert made.vocab_size <= 300
    assert len(made.encode("zebra")) <= 2 and len(made.encode("quagga")) <= 2  # the conversations and the documents


def test_training_tells_how_well_the_tokenizer_fits(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": f"row number {i}"}) + "\n" for i in range(300)))
    result = run(tokenizer, "train", str(path), "--vocab-size", "9000", "--out", str(tmp_path / "out"))
    assert "bytes per token on" in result.output
    assert "too few pairs for --vocab-size 9000" in result.output


def test_a_tokenizer_is_not_replaced_unasked(folder: Path) -> None:
    with pytest.raises(UsageError, match="--force"):
        run(tokenizer, "train", "greetings", "--out", str(folder))
    before = Tokenizer.load(folder).fingerprint
    run(tokenizer, "train", "greetings", "--vocab-size", "300", "--out", str(folder), "--force")
    assert Tokenizer.load(folder).fingerprint == before


def test_rows_without_text_cannot_train_a_tokenizer(tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text('{"text": "a"}\n{"text": ""}\n')
    with pytest.raises(DataError, match=r"bad\.jsonl:2: text is empty"):
        run(tokenizer, "train", str(path), "--out", str(tmp_path / "out"))


def test_the_shipped_tokenizer_is_described_by_its_name() -> None:
    for words in ([], ["--tokenizer", "default"]):
        assert run(tokenizer, "show", *words).output.startswith("default: 6400 tokens")


def test_a_tokenizer_is_described(folder: Path) -> None:
    result = run(tokenizer, "show", "zebra 🙂", "--tokenizer", str(folder))
    made = Tokenizer.load(folder)
    assert made.fingerprint in result.output and made.template_digest in result.output
    assert "2  <|im_end|>  (end)" in result.output
    assert f"{len(made.encode('zebra 🙂'))} tokens for 10 bytes" in result.output
    assert r"b'\xf0'" in result.output


def test_a_row_is_shown_token_by_token(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "chats.jsonl"
    turns = [{"role": "user", "content": "hi [bold]"}, {"role": "assistant", "content": "ok"}]
    path.write_text((json.dumps({"messages": turns}) + "\n") * 2)
    lines = run(data, "show", str(path), "--row", "2", "--tokenizer", str(folder)).output.splitlines()
    assert lines[0].startswith(f"{path}:2  chat row 2, 1 unit")
    ids, learn = Tokenizer.load(folder).encode_chat(turns)
    rows = [line.split() for line in lines if line.split() and line.split()[0].isdigit() and "tokens" not in line]
    assert [int(row[1]) for row in rows] == ids
    assert [row[-1] == "yes" for row in rows] == learn
    assert f"{len(ids)} tokens, {sum(learn)} learned" in "\n".join(lines)


def test_rows_before_the_one_that_is_shown_may_be_bad(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "texts.jsonl"
    path.write_text('{"text": "a"}\n{"text": 3}\n{"text": \n{"text": "b"}\n')
    assert run(data, "show", str(path), "--row", "4", "--tokenizer", str(folder)).output.startswith(f"{path}:4  text row")
    for row, reason in (("2", ":2: text is a number"), ("3", ":3: not JSON")):
        with pytest.raises(DataError, match=reason):
            run(data, "show", str(path), "--row", row, "--tokenizer", str(folder))


def test_a_row_is_found_by_its_line_too(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('text\n"one\ntwo"\n\nthree\n')
    for words, place in ((["--row", "2"], "a.csv:5  text row 2, 1 unit"), (["--line", "5"], "a.csv:5  text row 2, 1 unit"),
                         (["--line", "2"], "a.csv:2  text row 1, 1 unit"), ([], "a.csv:2  text row 1, 1 unit")):  # fmt: skip
        assert place in run(data, "show", str(tmp_path / "a.csv"), *words, "--tokenizer", str(folder)).output
    with pytest.raises(UsageError, match="has no row on line 3"):
        run(data, "show", str(tmp_path / "a.csv"), "--line", "3", "--tokenizer", str(folder))


def test_a_built_in_source_shows_the_kind_that_is_asked_for(folder: Path) -> None:
    assert "text row" in run(data, "show", "greetings", "--tokenizer", str(folder)).output
    assert "chat row" in run(data, "show", "greetings", "--kind", "chat", "--tokenizer", str(folder)).output


def test_a_row_beyond_the_end_is_a_usage_error(folder: Path) -> None:
    with pytest.raises(UsageError, match="fewer than 99 rows"):
        run(data, "show", "greetings", "--row", "99", "--tokenizer", str(folder))


def test_built_in_files_are_made(tmp_path: Path) -> None:
    result = run(data, "make", "greetings", "--out", str(tmp_path / "out"), "--seed", "5")
    assert (tmp_path / "out" / "sft.jsonl").read_text() == "5"
    assert result.output == f"{tmp_path / 'out'}:\n  sft.jsonl  8 rows\n"


def test_only_some_sources_make_files() -> None:
    with pytest.raises(UsageError, match=r"'files' makes no files\. Sources that do: greetings"):
        run(data, "make", "files")
    with pytest.raises(UsageError, match="Unknown source 'nope'"):
        run(data, "make", "nope")
