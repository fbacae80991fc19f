"""How long a checkpoint delays the training, when it is written in the background and when training waits for it.

    python benchmarks/checkpoint.py [--preset minimind2-small] [--rounds 5] [--threads 2] [--folder DIR]

Each round has some plain steps, one save that is waited for, and one save in the background with the steps that run during
it. "held up" is the time that a save takes between two steps. "steps beside it longer" is the extra time, in all, of the steps
that run during a background save, compared to plain steps. All values are medians over the rounds. `--folder` chooses the
disk.
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

PLAIN = 6  # plain steps per round


def prepare(args: argparse.Namespace, folder: Path) -> tuple[Trainer, list[Unit]]:
    """The trainer of a new model after three steps, and the units that every step uses."""
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
    """Run one step. Returns its seconds."""
    started = time.perf_counter()
    trainer.train_step(units)
    trainer.state.backend.synchronize()
    return time.perf_counter() - started


def save(trainer: Trainer, *, background: bool) -> float:
    """Save a checkpoint, or start to save it in the background. Returns the seconds until training can continue."""
    trainer.state.settings = attrs.evolve(trainer.state.settings, background_save=background, keep_checkpoints=1)
    started = time.perf_counter()
    trainer.save()
    return time.perf_counter() - started


def one_round(trainer: Trainer, units: list[Unit]) -> dict[str, float]:
    """The times of one round in seconds: a plain step, a save that is waited for, the start of a background save, the extra
    time of the steps during it, and the time until it is complete."""
    step = statistics.median(timed_step(trainer, units) for _ in range(PLAIN))
    waited = save(trainer, background=False)
    started_save, steps_during = save(trainer, background=True), []
    started = time.perf_counter()
    while trainer.saver and trainer.saver.pop_completed() is None:
        steps_during.append(timed_step(trainer, units))
    complete = time.perf_counter() - started
    extra = sum(steps_during) - step * len(steps_during)
    return {"step": step, "waited": waited, "started": started_save, "extra": extra, "complete": complete}


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--preset", default="minimind2-small")
    parser.add_argument("--backend", default="cpu")
    parser.add_argument("--rows", type=int, default=8, help="documents of 256 tokens per step")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--folder", type=Path, help="where checkpoints are written; by default a temporary folder")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        trainer, units = prepare(args, Path(name))
        rounds = [one_round(trainer, units) for _ in range(args.rounds)]
        size = sum(f.stat().st_size for f in Path(name).rglob("checkpoints/*/**/*") if f.is_file())
    median = {key: statistics.median(r[key] for r in rounds) for key in rounds[0]}
    print(f"one step {median['step'] * 1e3:.0f} ms, one checkpoint {size / 2**20:.0f} MiB")
    print(f"  waited for      held up {median['waited'] / median['step']:6.2f} steps")
    print(f"  in background   held up {median['started'] / median['step']:6.2f} steps")
    print(f"                  steps beside it longer by {median['extra'] / median['step']:.2f} steps in all")
    print(f"                  complete after {median['complete'] / median['step']:.2f} steps")
    total = median["started"] + median["extra"]
    print(f"  relative to waiting: held up {median['started'] / median['waited']:.2f}, in all {total / median['waited']:.2f}")


if __name__ == "__main__":
    main()
