"""Trainings, stages and commands whose data and models are on a hub."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import hub_server
import pytest

from mm.core.errors import UsageError
from mm.testing import tiny_tokenizer
from mm.testing.pytest_plugin import CommandLine, Plugins, Train

pytestmark = pytest.mark.mm_plugins("mm.plugins.sources.hub")

ROWS = "".join(json.dumps({"text": f"row {n} of some text"}) + "\n" for n in range(40))
COMMIT = re.compile(r"@[0-9a-f]{40}")


@pytest.fixture
def exported(mm_train: Train, mm_cli: CommandLine, mm_workspace: Path, hub: hub_server.Hub) -> Path:
    """A tiny model in Llama's layout, which is on the hub too as owner/model."""
    mm_train("pretrain", run="base")
    mm_cli("convert", "base", "exported", "--to", "llama")
    folder = mm_workspace / "exported"
    hub.add("model", "owner/model", {path.name: path.read_bytes() for path in folder.iterdir()})
    return folder


def test_a_run_names_the_commit_of_its_data_and_resumes_with_it(
    hub: hub_server.Hub, mm_train: Train, mm_cli: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = hub.add("dataset", "owner/set", {"rows.jsonl": ROWS, "held.jsonl": ROWS})
    run = mm_train("pretrain", data="hub:owner/set:rows.jsonl", max_steps=4, stop_after_steps=2, run="a")
    pinned = f"hub:owner/set@{repository.commit}:rows.jsonl"
    assert [part["locator"] for part in run.manifest["data"]] == [pinned]
    assert COMMIT.search(" ".join(run.manifest["command"]))
    repository.older["v1"], repository.files = repository.files, {"rows.jsonl": b'{"text": "another"}\n'}
    hub_server.point(monkeypatch, "http://127.0.0.1:9")
    data_of_it = run.manifest["data"]
    mm_cli("train", "--resume", "--run", "a")
    assert run.manifest["state"] == "finished" and run.manifest["data"] == data_of_it


def test_a_weight_stays_behind_the_commit(hub: hub_server.Hub, mm_cli: CommandLine, mm_workspace: Path) -> None:
    hub.add("dataset", "owner/set", {"rows.jsonl": ROWS})
    hub.add("dataset", "owner/other", {"rows.jsonl": ROWS.replace("row", "line")})
    train = ("train", "--algo", "pretrain", "--preset", "tiny", "--max-steps", 1, "--dtype", "fp32", "--run", "a")
    mm_cli(*train, "--data", "hub:owner/set:3", "--data", "hub:owner/other:1", "--eval-data", "hub:owner/other")
    manifest = json.loads((mm_workspace / "runs/a/manifest.json").read_text())
    assert [part.get("share") for part in manifest["data"]] == [0.75, 0.25]
    for part in (*manifest["data"], *manifest["eval_data"]):
        assert re.fullmatch(r"hub:owner/(set|other)@[0-9a-f]{40}", part["locator"])


def test_a_model_of_a_hub_is_trained_and_described_like_its_folder(
    hub: hub_server.Hub, exported: Path, mm_train: Train, mm_cli: CommandLine
) -> None:
    texts = [mm_cli("info", name, "--json").out for name in ("hub:owner/model", exported)]
    values = [json.loads(text) for text in texts]
    same = ("architecture", "parameters", "config", "tokenizer")
    assert [values[0][key] for key in same] == [values[1][key] for key in same] and values[0]["problems"] == values[1]["problems"]
    run = mm_train("pretrain", from_="hub:owner/model", run="on")
    twin = mm_train("pretrain", from_=str(exported), run="twin")
    assert COMMIT.search(run.manifest["settings"]["from"])
    assert (run.model / "model.safetensors").read_bytes() == (twin.model / "model.safetensors").read_bytes()
    answers = [mm_cli("generate", name, "row", "--raw", "--max-new-tokens", 5).out for name in ("hub:owner/model", exported)]
    assert answers[0] == answers[1]
    mm_cli("convert", "hub:owner/model", "copy")
    mm_cli("convert", exported, "copy-of-folder")
    assert Path("copy/model.safetensors").read_bytes() == Path("copy-of-folder/model.safetensors").read_bytes()


def test_a_pth_of_a_hub_is_converted_with_a_tokenizer_of_a_hub(
    hub: hub_server.Hub, exported: Path, mm_cli: CommandLine, mm_workspace: Path
) -> None:
    hub.add("model", "owner/tokenizer", {path.name: path.read_bytes() for path in exported.iterdir()})
    torch = pytest.importorskip("torch")
    torch.save({"lm_head.weight": torch.zeros(2, 2)}, mm_workspace / "x.pth")
    hub.add("model", "owner/files", {"full_sft_64.pth": (mm_workspace / "x.pth").read_bytes()})
    ended = mm_cli("convert", "hub:owner/files:full_sft_64.pth", "out", "--tokenizer", "hub:owner/tokenizer", code=None)
    assert ended.code and "full_sft_64.pth" in ended.err  # it was fetched, and the reader of .pth files has refused it
    assert not Path("out").exists()


def test_a_tokenizer_of_a_hub_is_used_and_named(
    hub: hub_server.Hub, mm_train: Train, mm_cli: CommandLine, mm_workspace: Path
) -> None:
    tiny_tokenizer().save(mm_workspace / "t")
    hub.add("model", "owner/t", {path.name: path.read_bytes() for path in (mm_workspace / "t").iterdir()})
    run = mm_train("pretrain", tokenizer="hub:owner/t")
    assert COMMIT.search(run.manifest["settings"]["tokenizer"]) and run.manifest["tokenizer"] == tiny_tokenizer().fingerprint
    shown = json.loads(mm_cli("tokenizer", "show", "x", "--tokenizer", "hub:owner/t", "--json").out)
    assert shown["fingerprint"] == tiny_tokenizer().fingerprint
    (mm_workspace / "rows.jsonl").write_text(ROWS)
    assert json.loads(mm_cli("data", "stats", "rows.jsonl", "--tokenizer", "hub:owner/t", "--json").out)["rows"] == 40


def test_the_stage_downloads_once_and_says_the_size_before(hub: hub_server.Hub, exported: Path, mm_cli: CommandLine) -> None:
    hub.add("dataset", "owner/set", {"rows.jsonl": ROWS})
    line = ("run", "download", "--data", "hub:owner/set", "--hub-model", "hub:owner/model")
    planned = mm_cli(*line, "--dry-run")
    assert "1 file, 1 KiB to download into" in planned.out + planned.err and "time is not known" in planned.out + planned.err
    assert hub.bodies() == []
    done = mm_cli(*line)
    assert re.search(r"hub:owner/set@\w{40}: downloaded, 1 KiB", done.err)
    again, before = mm_cli(*line), len(hub.bodies())
    assert len(hub.bodies()) == before and "to download" not in again.err
    with pytest.raises(AssertionError, match="--hub-model base is on no hub"):
        mm_cli("run", "download", "--hub-model", "base")


def test_a_dry_run_downloads_nothing_and_says_what_is_needed(hub: hub_server.Hub, mm_cli: CommandLine) -> None:
    hub.add("dataset", "owner/set", {"rows.jsonl": ROWS})
    refused = mm_cli("train", "--algo", "pretrain", "--data", "hub:owner/set", "--dry-run", code=2)
    assert "to download into" in refused.err and "mm run download" in refused.err
    planned = mm_cli("run", "pretrain", "--data", "hub:owner/set", "--dry-run")
    assert "mm train --algo pretrain, once this is there" in planned.out + planned.err
    assert hub.bodies() == []


def test_quiet_is_quiet(hub: hub_server.Hub, mm_cli: CommandLine, mm_plugins: Plugins, mm_train: Train, capsys: Any) -> None:
    hub.add("dataset", "owner/set", {"rows.jsonl": ROWS})
    mm_train("pretrain", data="hub:owner/set")
    assert capsys.readouterr().err == ""
    shown = mm_cli("data", "check", "hub:owner/set")
    assert "40 rows: 40 good" in shown.out and "hub:owner/set/rows.jsonl" in shown.out
    with pytest.raises(UsageError, match="no dataset owner/none"):
        mm_train("pretrain", data="hub:owner/none")


def test_the_list_names_everything_within_80_columns(mm_cli: CommandLine) -> None:
    text = mm_cli("data", "list").out
    assert max(map(len, text.splitlines())) <= 80
    values = json.loads(mm_cli("data", "list", "--json").out)
    named = {entry["name"]: entry for entry in values["hub"]}
    assert named["sft_t2t_mini"]["use"] == "--data hub:sft_t2t_mini" and named["minimind-3"]["use"] == "--from hub:minimind-3"
    assert {source["name"] for source in values["built_in"]} == {"classics", "skills"}
    for name in named:
        assert name in text
