"""Running GGUF files in llama.cpp, and the same computation by our model."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from torch import Tensor

from mm.runtime.models.folder import LoadedModel
from mm.runtime.nn.batch import Tokens, Unit, pack

MODULES = Path(__file__).parents[2] / "build/engines/node_modules"
PROGRAM = Path(__file__).with_name("llama_cpp.mjs")
ASKED = 20  # likeliest tokens of a position


@attrs.frozen
class Reply:
    """Our greedy reply to a prompt: the log-probabilities of the likeliest tokens at each of its positions."""

    prompt: list[int]
    ids: list[int]
    asked: list[list[int]]
    logprobs: list[list[float]]

    def tie_before(self, place: int, bound: float) -> bool:
        """True if our two likeliest tokens are less than the bound apart at or before a position."""
        return any(values[0] - values[1] < bound for values in self.logprobs[: place + 1])


@attrs.frozen
class Difference:
    """What llama.cpp did with a file: equal greedy tokens of each reply, and the differences of log-probabilities."""

    equal: list[int]
    largest: float
    mean: float


def logits(loaded: LoadedModel, ids: Sequence[int]) -> Tensor:
    """(positions, vocabulary) of our model in float32."""
    batch = pack([Unit((Tokens(torch.tensor(ids)),))])
    with torch.no_grad():
        found: Tensor = loaded.model.eval()(batch, head=lambda hidden, weight: hidden.float() @ weight.float().T)[0]
    return found


def reply(loaded: LoadedModel, prompt: Sequence[int], count: int) -> Reply:
    """Our greedy reply of `count` tokens."""
    ids, asked, logprobs = list(prompt), [], []
    for _ in range(count):
        values, tokens = logits(loaded, ids)[-1].log_softmax(-1).topk(ASKED)
        asked.append(tokens.tolist())
        logprobs.append(values.tolist())
        ids.append(asked[-1][0])
    return Reply(list(prompt), ids[len(prompt) :], asked, logprobs)


def run(files: Sequence[tuple[Path, Sequence[Reply]]], texts: Sequence[str], count: int, folder: Path) -> dict[str, Any]:
    """The results of the program. The test is skipped with the reason if node or the package is missing."""
    if not shutil.which("node"):
        pytest.skip("node is not installed")
    if not (MODULES / "node-llama-cpp").is_dir():
        pytest.skip(f"{MODULES} has no node-llama-cpp: make engines")
    job = {
        "files": [
            {"file": str(file), "sequences": [{"prompt": r.prompt, "reply": r.ids, "asked": r.asked} for r in replies]}
            for file, replies in files
        ],
        "texts": list(texts), "count": count,
    }  # fmt: skip
    (folder / "job.json").write_text(json.dumps(job), encoding="utf-8")
    command = ["node", str(PROGRAM), str(MODULES), str(folder / "job.json"), str(folder / "out.json")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-2000:]
    found: dict[str, Any] = json.loads((folder / "out.json").read_text(encoding="utf-8"))
    return found


def difference(replies: Sequence[Reply], result: dict[str, Any]) -> Difference:
    """How a file's results differ from ours. Probabilities that are zero in float32 are left out."""
    equal = [
        next((i for i, (one, own) in enumerate(zip(tokens, r.ids, strict=False)) if one != own), min(len(tokens), len(r.ids)))
        for r, tokens in zip(replies, result["greedy"], strict=True)
    ]
    found = [
        abs(one - own)
        for r, rows in zip(replies, result["logprobs"], strict=True)
        for row, values in zip(rows, r.logprobs, strict=True)
        for one, own in zip(row, values, strict=True)
        if one is not None
    ]
    return Difference(equal, max(found), sum(found) / len(found))
