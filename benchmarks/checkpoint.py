"""How long a checkpoint holds up the training, written beside it and waited for.

    python benchmarks/checkpoint.py [--preset minimind2-small] [--rounds 5] [--threads 2] [--folder DIR]

Rounds in turn: some plain steps, one save that is waited for, one in the background and the steps that run beside it.
`held up` is the time between two steps that the save took; `steps beside it` is how much longer those steps were
altogether than plain ones. Figures are medians; `--folder` chooses the disk.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import attrs

if TYPE_CHECKING:
    from mm.runtime.nn.batch import Unit
    from mm.runtime.training.trainer import Trainer

PLAIN = 6


def prepare(args: argparse.Namespace, folder: Path) -> tuple[Trainer, list[Unit]]:
    """A training of a new model, and the batch of each of its steps."""
    from mm.core.config.composition import Composition
    from mm.core.layers import argument_layer
    from mm.core.plugins import PluginManager
    from mm.core.workspace import Workspace
    from mm.runtime.runs import api, session

    data = folder / "rows.jsonl"
    row = {"text": "the quick brown fox jumps over the lazy dog and " * 60}
    data.write_text("".join(json.dumps(row | {"n": n}) + "\n" for n in range(16)), encoding="utf-8")
    plugins, workspace = PluginManager.discover(), Workspace(folder)
    options = {
        "algo": "pretrain", "arch": "dense", "preset": args.preset, "data": data, "backend": args.backend,
        "run": "bench", "global_batch_size": args.rows, "max_length": 256, "eval_ratio": 0.0, "threads": args.threads,
    }  # fmt: skip
    resolved = api.new_run(Composition(plugins, [argument_layer(options)]), workspace, lambda line: None)
    api.activate(plugins, resolved.run.select.backend, print)
    trainer = session.build(plugins, resolved.run, workspace, say=lambda line: None).trainer
    units = trainer.state.feed.next()
    for _ in range(3):
        trainer.train_step(units)
    return trainer, units


def timed_step(trainer: Trainer, units: list[Unit]) -> float:
    """Seconds of one step."""
    started = time.perf_counter()
    trainer.train_step(units)
    trainer.state.backend.synchronize()
    return time.perf_counter() - started


def save(trainer: Trainer, *, background: bool) -> float:
    """Seconds that beginning a save holds up the training."""
    trainer.state.settings = attrs.evolve(trainer.state.settings, background_save=background, keep_checkpoints=1)
    started = time.perf_counter()
    trainer.save()
    return time.perf_counter() - started


def one_round(trainer: Trainer, units: list[Unit]) -> dict[str, float]:
    """The figures of a round in seconds."""
    step = statistics.median(timed_step(trainer, units) for _ in range(PLAIN))
    waited = save(trainer, background=False)
    held, beside = save(trainer, background=True), []
    started = time.perf_counter()
    while trainer.saver and trainer.saver.finished() is None:
        beside.append(timed_step(trainer, units))
    written = time.perf_counter() - started
    return {"step": step, "waited": waited, "held": held, "beside": sum(beside) - step * len(beside), "written": written}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--preset", default="minimind2-small")
    parser.add_argument("--backend", default="cpu")
    parser.add_argument("--rows", type=int, default=8, help="documents of 256 tokens a step")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--folder", type=Path, help="where checkpoints are written; by default a temporary folder")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        trainer, units = prepare(args, Path(name))
        rounds = [one_round(trainer, units) for _ in range(args.rounds)]
        size = sum(f.stat().st_size for f in Path(name).rglob("checkpoints/*/**/*") if f.is_file())
    found = {key: statistics.median(r[key] for r in rounds) for key in rounds[0]}
    print(f"a step {found['step'] * 1e3:.0f} ms, a checkpoint {size / 2**20:.0f} MiB")
    print(f"  waited for      held up {found['waited'] / found['step']:6.2f} steps")
    print(f"  in background   held up {found['held'] / found['step']:6.2f} steps")
    print(f"                  steps beside it longer by {found['beside'] / found['step']:.2f} steps in all")
    print(f"                  stands after {found['written'] / found['step']:.2f} steps")
    total = found["held"] + found["beside"]
    print(f"  background holds up {found['held'] / found['waited']:.2f} of waiting, costs {total / found['waited']:.2f} of it")


if __name__ == "__main__":
    main()
