"""Small trainings of four kinds that are killed and damaged, and everything about them that must not depend on that."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
from file_operations import Kill
from run_files import lines, write_rows
from sizes import sizes
from warm_runner import Runner

from mm.core.workspace import RunFolder
from mm.testing import tiny_rows, tiny_tokenizer

# imported by any training: a fork need not do it again
MODULES = (
    "mm.runtime.generation.text_model", "mm.runtime.runs.session", "mm.runtime.runs.api", "mm.plugins.architectures.decoder",
    "mm.backends.cpu.attention", "mm.runtime.data.cache", "torch._dynamo", "torch.distributed.checkpoint._fsspec_filesystem",
)  # fmt: skip
_REWARD = "def vowels(rows, completions):\n    return [sum(map(text.count, 'aeiou')) for text in completions]\n"


def flags(**options: object) -> list[str]:
    """The words of options: True stands for a flag."""
    words = ((f"--{name.rstrip('_').replace('_', '-')}", value) for name, value in options.items())
    return [word for name, value in words for word in ([name] if value is True else [name, str(value)])]


_NEW = flags(arch="dense", preset="tiny", tokenizer="tokenizer", **sizes(layers=1))
_COMMON = flags(
    backend="cpu", dtype="fp32", max_length=128, global_batch_size=2, micro_batch_tokens=64, learning_rate=0.01, threads=1,
    data_workers=1,
)  # fmt: skip
_LONG = flags(
    run="a", max_steps=6, log_interval=1, save_interval=2, eval_interval=2, eval_ratio=0.2, keep_best=True, samples=1,
    sample_tokens=4,
)  # fmt: skip
KINDS: dict[str, list[str]] = {
    "pretrain": flags(algo="pretrain", data="text.jsonl") + _NEW,
    "sft": flags(algo="sft", adapter="lora", data="chat.jsonl", from_="start"),
    "dpo": flags(algo="dpo", cache_reference=True, data="preference.jsonl", from_="start"),
    "grpo": flags(
        algo="grpo", data="prompt.jsonl", from_="start", num_generations=2, max_new_tokens=4, reward="python",
        python_function="reward.py:vowels",
    ),
}  # fmt: skip
RESUME = ("train", "--resume", "--run", "a")
# phase -> its paths; an operation belongs to the first that matches
PHASES = {
    "name": r"\.mm/names", "token cache": r"\.mm/tokens", "reference cache": r"\.mm/reference", "creation": r"runs$|runs/\.a\.",
    "checkpoints": r"runs/a/checkpoints", "lines": r"runs/a/\.?(metrics|samples|rollouts)\.jsonl", "best": r"runs/a/\.?best",
    "model": r"runs/a/\.?model", "manifest": r"runs/a/\.?manifest", "log and folder": r"runs/a",
}  # fmt: skip
_FIELDS = ("state", "step", "steps", "tokens", "best", "stop_reason", "parameters")
_LOCKS = re.compile(r"\.mm/(tokens|reference)/[^/]*\.lock")  # stay, as a lock that is removed can be held twice


def words(kind: str) -> list[str]:
    """The command line of a training of that kind."""
    return ["train", *KINDS[kind], *_COMMON, *_LONG]


def phase(operation: str) -> str:
    """The phase of a run to which a file operation belongs."""
    path = operation.partition(" ")[2]
    return next((name for name, pattern in PHASES.items() if re.match(pattern, path)), "other")


def new_workspace(folder: Path, runner: Runner) -> Path:
    """A workspace with rows and a finished run `start`, without caches."""
    folder.mkdir()
    tiny_tokenizer().save(folder / "tokenizer")
    for kind in ("text", "chat", "preference", "prompt"):
        write_rows(folder / f"{kind}.jsonl", tiny_rows(kind) * 3)
    (folder / "reward.py").write_text(_REWARD, encoding="utf-8")
    begin = [*KINDS["pretrain"], *_COMMON, *flags(max_steps=1, eval_ratio=0, run="start")]
    found = runner("train", *begin, workspace=folder)
    assert found["code"] == 0, found
    return folder


def content(folder: Path) -> dict[str, bytes]:
    """Path inside the folder -> bytes, for every file."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def result(workspace: Path) -> dict[str, Any]:
    """Everything about the finished run `a` that must not depend on kills: models, lines, manifest, and the names of files."""
    run = RunFolder(workspace / "runs/a")
    names = [str(path.relative_to(workspace)) for part in ("runs", ".mm") for path in (workspace / part).rglob("*")]
    return {
        "names": sorted(name for name in names if not _LOCKS.fullmatch(name)),
        "model": content(run.model), "best": content(run.best),
        "manifest": {name: run.manifest.get(name) for name in _FIELDS},
        **{path.name: lines(run, path.name) for path in run.path.glob("*.jsonl")},
    }  # fmt: skip


@attrs.frozen
class Whole:
    """A training that nothing happened to: the workspace before it, its file operations, and its result."""

    kind: str
    before: Path
    after: Path
    operations: list[str]
    result: dict[str, Any]

    def draw(self, number: int) -> tuple[Kill, Kill | None]:
        """The kill of a case, and one of its first resume, if there is one. The phases take turns."""
        draw = random.Random(f"{self.kind} {number}")
        phases = [name for name in PHASES if any(phase(one) == name for one in self.operations)]
        chosen = phases[number % len(phases)]
        at = draw.choice([n for n, one in enumerate(self.operations, 1) if phase(one) == chosen])
        torn = int(10 ** draw.uniform(0, 4.5))
        first = (at, torn if draw.random() < 0.3 else None)
        return first, (draw.randrange(1, len(self.operations)), None) if draw.random() < 0.3 else None


def flip(data: bytes, draw: random.Random) -> bytes:
    """One bit is another."""
    place = draw.randrange(len(data))
    return data[:place] + bytes([data[place] ^ 1 << draw.randrange(8)]) + data[place + 1 :]


def zero(data: bytes, draw: random.Random) -> bytes:
    """Zeros from somewhere to the end, as after a power cut."""
    keep = draw.randrange(len(data))
    return data[:keep] + bytes(len(data) - keep)


def cut(data: bytes, draw: random.Random) -> bytes:
    """Only the beginning."""
    return data[: draw.randrange(len(data))]


DAMAGES: dict[str, Callable[[bytes, random.Random], bytes] | None] = {"flip": flip, "zero": zero, "cut": cut, "delete": None}


def damage(workspace: Path, draw: random.Random) -> str:
    """Damage one file of run `a` or of the caches. Returns how, and the path. The folder is drawn first, so that the many files
    of the checkpoints do not crowd out the manifest."""
    folders: dict[Path, list[Path]] = {}
    for root in (workspace / "runs/a", workspace / ".mm/tokens", workspace / ".mm/reference"):
        for path in sorted(path for path in root.rglob("*") if path.is_file() and path.stat().st_size):
            folders.setdefault(root / path.relative_to(root).parts[0] if path.parent != root else root, []).append(path)
    path = draw.choice(folders[draw.choice(sorted(folders))])
    how = draw.choice(sorted(DAMAGES))
    if change := DAMAGES[how]:
        path.write_bytes(change(path.read_bytes(), draw))
    else:
        path.unlink()
    return f"{how} {path.relative_to(workspace)}"


def shown(found: dict[str, Any]) -> str:
    """How a command line ended, for an assertion."""
    return json.dumps({name: value for name, value in found.items() if name != "operations"}, indent=1)
