"""The memory that a plan estimates, beside the bytes of live tensors that are counted in real steps.

    python benchmarks/plan_memory.py [SETTING ...] [--backend cpu]

On the CPU a torch dispatch mode sees every operator and counts the storages that are alive; it sees nothing that an operator
allocates and frees inside, nor what the process needs besides. On a card the count is that of torch's allocator, which sees both,
less what libraries had taken before (a workspace of cuBLAS). Three steps are taken, and the largest count in the last two is
compared with the plan's, without the copy for saving, since nothing is saved.
"""

from __future__ import annotations

import argparse
import gc
import json
import tempfile
from pathlib import Path
from typing import Any

from mm.core.plugins import PluginManager
from mm.core.say import silent
from mm.core.workspace import Workspace
from mm.runtime.runs import api
from mm.testing import plugin_manager

STEPS = 3
_SMALL = {
    "preset": "tiny", "dense_hidden_size": 128, "dense_num_attention_heads": 4, "dense_num_key_value_heads": 2,
    "micro_batch_tokens": 4096, "dtype": "fp32", "dense_max_position_embeddings": 2048,
}  # fmt: skip
_DENSE = {**_SMALL, "arch": "dense"}
_EXPERTS = {**{name.replace("dense", "moe"): value for name, value in _SMALL.items()}, "arch": "moe"}
_THIRD = {**_DENSE, "preset": "tiny3"}
_LONG = {"algo": "pretrain", "data": "classics:en", "max_length": 512, "global_batch_size": 16}
_SHORT = {"algo": "sft", "data": "skills", "global_batch_size": 64}
_DRAWN = {
    "data": "skills", "reward": "length", "global_batch_size": 4, "max_new_tokens": 96, "max_length": 128, "kl_coef": 0.1,
}  # fmt: skip
SETTINGS: dict[str, dict[str, Any]] = {
    "pretrain, long rows": {**_DENSE, **_LONG},
    "pretrain, long rows, bf16": {**_DENSE, **_LONG, "dtype": "bf16"},
    "pretrain, activation checkpointing": {**_DENSE, **_LONG, "activation_checkpointing": True, "dense_num_hidden_layers": 8},
    "pretrain, dropout": {**_DENSE, **_LONG, "dropout": 0.1},
    "pretrain, vocabulary of 60,000": {**_DENSE, **_LONG, "vocabulary": 60000},
    "pretrain, muon, several micro-batches": {**_DENSE, **_LONG, "optimizer": "muon", "micro_batch_tokens": 1024},
    "sft, short rows, third generation": {**_THIRD, **_SHORT},
    "sft, moe": {**_EXPERTS, **_SHORT},
    "sft, moe, bf16": {**_EXPERTS, **_SHORT, "dtype": "bf16"},
    "lora": {**_DENSE, **_SHORT, "algo": "lora"},
    "dpo": {**_DENSE, "algo": "dpo", "data": "skills", "global_batch_size": 32},
    "grpo": {**_DENSE, **_DRAWN, "algo": "grpo", "num_generations": 8},
    "grpo, bf16": {**_DENSE, **_DRAWN, "algo": "grpo", "num_generations": 8, "dtype": "bf16"},
    "ppo": {**_DENSE, **_DRAWN, "algo": "ppo", "global_batch_size": 16},
}  # fmt: skip


class CardTensors:
    """`LiveTensors` of a card, from its allocator."""

    def __init__(self, plugins: PluginManager, backend: str) -> None:
        from mm.runtime.models.opening import open_backend

        self._backend = open_backend(plugins, backend)
        self._before = 0

    def __enter__(self) -> CardTensors:
        import torch

        weight = torch.ones(64, 64, device=self._backend.device(), requires_grad=True)
        for dtype in ("fp32", self._backend.default_dtype()):
            with self._backend.autocast(dtype):
                product = weight @ weight
            product.sum().backward()  # a thread of its own, and so a workspace of its own
        del weight, product
        self._before = torch.accelerator.memory_allocated()
        self.restart()
        return self

    def __exit__(self, *raised: object) -> None: ...

    def restart(self) -> None:
        """Forget the peak so far."""
        import torch

        torch.accelerator.reset_peak_memory_stats()

    @property
    def peak(self) -> int:
        """The most bytes since the last `restart`."""
        return self._backend.memory()["peak"] - self._before


def measure(setting: str, backend: str = "cpu") -> tuple[dict[str, int], int]:
    """(the plan's bytes by kind, the bytes that are counted at the peak of a step), for one of `SETTINGS`."""
    from mm.testing.live_tensors import LiveTensors

    options = dict(SETTINGS[setting])
    plugins = plugin_manager()
    with tempfile.TemporaryDirectory() as folder:
        if size := options.pop("vocabulary", None):
            options["tokenizer"] = wide_tokenizer(Path(folder) / "tokenizer", size)
        workspace = Workspace(Path(folder))
        given = {"run": "measured", "backend": backend, "max_steps": 10, "threads": 1, "eval_ratio": 0.0, **options}
        resolved = api.new_run(api.compose(plugins, given, None), workspace, silent)
        api.activate(plugins, backend, silent)
        estimated = api.describe(plugins, resolved, workspace).values["memory"]
        from mm.runtime.runs import session

        with LiveTensors() if backend == "cpu" else CardTensors(plugins, backend) as live:
            trainer = session.build(plugins, resolved.run, workspace, say=silent, watched=False).trainer
            for step in range(STEPS):
                if step == 1:  # the first makes the optimizer's state, at its end
                    live.restart()
                trainer.train_step(trainer.next_units())
    del trainer
    gc.collect()
    return {kind: size for kind, size in estimated.items() if kind != "copy for saving"}, live.peak


def wide_tokenizer(folder: Path, size: int) -> str:
    """A copy of the default tokenizer with further tokens that no text has, `size` in all."""
    from mm.runtime.text.tokenizer import DEFAULT_FOLDER

    folder.mkdir()
    for file in DEFAULT_FOLDER.iterdir():
        if file.is_file():
            (folder / file.name).write_bytes(file.read_bytes())
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    vocabulary = content["model"]["vocab"]
    vocabulary |= {f"unused {number}": number for number in range(len(vocabulary), size)}
    path.write_text(json.dumps(content), encoding="utf-8")
    return str(folder)


def main() -> None:
    """Parse the command line, measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", nargs="*", metavar="SETTING", default=list(SETTINGS))
    parser.add_argument("--backend", default="cpu")
    parser.add_argument("--kinds", action="store_true", help="Also print the plan's kinds.")
    args = parser.parse_args()
    print("| setting | plan, MiB | counted, MiB | ratio |\n|---|---|---|---|")
    for setting in args.settings:
        kinds, counted = measure(setting, args.backend)
        planned = sum(kinds.values())
        print(f"| {setting} | {planned / 2**20:.1f} | {counted / 2**20:.1f} | {planned / counted:.2f} |", flush=True)
        if args.kinds:
            print({kind: f"{size / 2**20:.1f}" for kind, size in kinds.items()})


if __name__ == "__main__":
    main()
