"""`--json`: one JSON document on standard output, for every command that reports something."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from sizes import sizes

from mm.testing import tiny_rows
from mm.testing.pytest_plugin import CommandLine, Train

SMALL = {**sizes(layers=1), "max_steps": 1, "run": "base"}


@pytest.fixture
def printed(mm_cli: CommandLine, mm_train: Train, mm_workspace: Path) -> Any:
    mm_train("pretrain", **SMALL)
    (mm_workspace / "texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in tiny_rows("text")), encoding="utf-8")

    def run(line: str, code: int = 0) -> Any:
        return json.loads(mm_cli(*line.split(), "--json", code=code).out)

    return run


def test_every_report_is_one_document(printed: Any, mm_workspace: Path) -> None:
    train = "train --algo pretrain --from base --data texts.jsonl --backend cpu --dtype fp32 --max-steps 2 --eval-ratio 0"
    plan = printed(f"{train} --run next --dry-run")
    assert plan["steps"] == 2 and plan["parameters"] > 0 and not (mm_workspace / "runs/next").exists()
    done = printed(f"{train} --run next")
    assert (done["run"], done["state"], done["step"]) == ("next", "finished", 2) and done["loss"] > 0
    assert Path(done["model"]).is_dir()
    text = printed("generate base The --raw --max-new-tokens 3 --backend cpu")
    assert len(text["ids"]) <= 3 and text["finish_reason"] in ("stop", "length") and text["backend"] == "cpu"
    converted = printed("convert base out --to llama")
    assert converted["path"].endswith("/out") and converted["files"]["config.json"] > 0
    assert printed("eval base --data texts.jsonl --backend cpu")[0]["text"][0]["perplexity"] > 1
    assert printed("info base")["architecture"] == "dense"
    assert [run["name"] for run in printed("runs")] == ["next", "base"] == [run["name"] for run in printed("runs list")]
    assert printed("runs show base")["settings"]["algo"] == "pretrain"
    assert printed("runs plot base")["metrics"] == ["loss"] and (mm_workspace / "runs/base/plot.png").exists()


def test_data_tokenizers_and_parts_too(printed: Any) -> None:
    rows = len(tiny_rows("text"))
    assert printed("data stats texts.jsonl")["rows"] == rows and printed("data check texts.jsonl")["rows"] == rows
    shown = printed("data show texts.jsonl --row 2")
    assert shown["place"] == "texts.jsonl:2" and len(shown["units"][0][0]["ids"]) == len(shown["units"][0][0]["learn"])
    assert all(count > 0 for count in printed("data make skills --out made")["rows"].values())
    size = printed("tokenizer train texts.jsonl --vocab-size 266 --out tok")["vocab_size"]
    tokens = printed("tokenizer show rain --tokenizer tok")
    assert len(tokens["ids"]) == len(tokens["tokens"]) and tokens["vocab_size"] == size == 266
    assert printed("tokenizer report tok")
    assert {"kind": "algorithm", "name": "sft"}.items() <= printed("plugins sft")[0].items()
    assert any(option["flag"] == "--dense-hidden-size" for option in printed("plugins dense")[0]["options"])
    assert {check["state"] for check in printed("plugins check length")[0]["checks"]} == {"ok"}
    assert any(row["name"] == "dense" for row in printed("plugins"))


def test_a_pipeline_too(printed: Any) -> None:
    options = "--tokenizer-data texts.jsonl --tokenizer-vocab-size 300"
    assert printed(f"run tokenizer {options} --dry-run")[0]["state"] == "planned"
    assert printed(f"run tokenizer {options}")[0]["state"] == "done"
    assert printed(f"run tokenizer {options} --dry-run")[0]["state"] == "up to date"
