"""The shipped texts: readable, of a size that trains, and with their terms beside them."""

import json
from importlib.resources import files

import pytest

from mm.plugins.sources.classics import build
from mm.plugins.sources.classics.texts import rows

DATA = files("mm.plugins.sources.classics") / "data"


@pytest.mark.parametrize("language", ["zh", "en"])
def test_rows_are_texts_of_a_reasonable_size(language):
    texts = [row["text"] for row in rows(language)]
    assert len(texts) > 300 and len(set(texts)) == len(texts)
    assert all(0 < len(text) <= 1500 and text == text.strip() for text in texts)
    assert all(set(row) == {"text"} for row in rows(language))


def test_both_languages_by_default_and_no_other():
    assert list(rows()) == [*rows("zh"), *rows("en")]
    with pytest.raises(ValueError, match="zh and en"):
        rows("fr")


def test_the_files_are_small_and_their_licences_stand_beside_them():
    assert sum(len((DATA / f"classics-{name}.jsonl").read_bytes()) for name in ("zh", "en")) < 1_000_000
    notice = (DATA / "NOTICE.md").read_text(encoding="utf-8")
    assert "The MIT License" in notice and "Copyright (c) 2016 JackeyGao" in notice
    assert "CC0 1.0" in notice and "PDDL 1.0" in notice


def test_known_passages_are_there():
    everything = "\n".join(row["text"] for row in rows())
    for passage in ("床前明月光", "学而时习之", "关关雎鸠", "Call me Ishmael."):
        assert passage in everything
    assert "一作" not in everything


def test_a_long_text_is_cut_at_sentences_and_loses_nothing():
    text = "One sentence of some length, as they come. " * 200
    pieces = list(build.split_text(text.strip()))
    assert " ".join(pieces) == text.strip()
    assert all(len(piece) <= build.MAX_CHARACTERS and piece.endswith(".") for piece in pieces)
    assert all(len(piece) <= build.MAX_CHARACTERS for piece in build.split_text("x" * 4000))


def test_short_neighbours_share_a_row():
    rows_of_text = list(build.pack_rows(["a" * 700, "b" * 700, "c" * 700], "\n"))
    assert rows_of_text == ["a" * 700 + "\n" + "b" * 700, "c" * 700]


def test_remarks_leave_the_poems():
    assert build.poem_text(["春草明年綠。(明年\n一作：年年)", "王孫歸不歸？"]) == "春草明年綠。\n王孫歸不歸？"


def test_build_reads_the_packages(tmp_path, monkeypatch, capsys):
    poetry, whale = tmp_path / "poetry/dist", tmp_path / "whale/data"
    sources = {
        poetry / "mengxue/tangshisanbaishou.json": {
            "content": [{"content": [{"chapter": "題", "author": "人", "paragraphs": ["一。", "二。"]}]}]
        },
        poetry / "lunyu/lunyu.json": [{"paragraphs": ["子曰。"]}],
        poetry / "shijing/shijing.json": [{"title": "关雎", "content": ["关关。"]}],
        whale / "chapter_1.json": {"title": "Loomings.", "text": "Call\nme.\n\nMore."},
    }
    for path, content in sources.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content), encoding="utf-8")
    monkeypatch.setattr(build, "DATA", tmp_path / "data")
    monkeypatch.setattr(build, "CHAPTERS", 1)
    monkeypatch.setattr("sys.argv", ["build", str(tmp_path / "poetry"), str(tmp_path / "whale")])
    build.main()
    assert "classics-en.jsonl 1 rows" in capsys.readouterr().out
    written = [json.loads(line)["text"] for line in (tmp_path / "data/classics-zh.jsonl").open(encoding="utf-8")]
    assert written == ["題\n人\n一。\n二。", "子曰。", "关雎\n关关。"]
    english = json.loads((tmp_path / "data/classics-en.jsonl").read_text(encoding="utf-8"))
    assert english["text"] == "Loomings.\nCall me.\nMore."
