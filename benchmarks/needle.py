"""Needle in a haystack: retrieval at the trained length and beyond it, with and without YaRN.

    python benchmarks/needle.py --seed 0

A document consists of random characters, in which a key occurs several times, each time followed by the same character, the
document's value. A tiny model is trained to continue such documents, of 16 to 64 characters. It is then tested with several
values of `--rope-scaling-factor`: the key and its value occur once, at a random position, the document ends in the key, and
the next character is right or wrong. Guessing is right one time in 32. Everything goes through `mm.train`, `mm.load` and the
engine, as for a user's model.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mm
from mm.core.workspace import RunFolder
from mm.runtime.data.tokenizer_training import TrainingOptions, train_tokenizer
from mm.runtime.generation.text_model import TextModel

KEY = "钥"
VALUES = "天地玄黄宇宙洪荒日月盈昃辰宿列张寒来暑往秋收冬藏闰余成岁律吕调阳"
SHORTEST, TRAINED = 16, 64
FACTORS = (None, 2.0, 4.0, 8.0)


def document(rng: random.Random, length: int, value: str, needles: int) -> str:
    """`length` random characters: the last one is KEY, and KEY followed by the value is at `needles` positions before it."""
    characters = rng.choices(VALUES, k=length - 1)
    for position in rng.sample(range(0, length - 3, 2), needles):
        characters[position : position + 2] = KEY, value
    return "".join(characters) + KEY


def train(workspace: Path, *, steps: int, seed: int = 0, threads: int = 1) -> RunFolder:
    """Train a model of 0.1M parameters on documents of up to TRAINED tokens."""
    rng, rows = random.Random(f"{seed}/train"), []
    for _ in range(steps * 64):
        value, length = rng.choice(VALUES), rng.randint(SHORTEST, TRAINED - 1)
        rows.append({"text": document(rng, length, value, rng.randint(1, length // 4)) + value})
    (workspace / "train.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    train_tokenizer([KEY + VALUES] * 4, TrainingOptions(vocab_size=400)).save(workspace / "tokenizer")
    return mm.train(
        "pretrain", workspace=workspace, run="needle", data=workspace / "train.jsonl", tokenizer=workspace / "tokenizer",
        arch="dense", preset="tiny", dense_hidden_size=64, dense_num_hidden_layers=2, dense_num_attention_heads=2,
        dense_num_key_value_heads=2, dense_rope_theta=1e4, backend="cpu", dtype="fp32", threads=threads, seed=seed,
        optimizer="muon", learning_rate=1e-2, warmup_ratio=0.05, global_batch_size=64, max_steps=steps, eval_ratio=0.0,
        log_interval=100, quiet=True,
    )  # fmt: skip


def accuracy(model: TextModel, length: int, *, asked: int = 200, seed: int = 0) -> float:
    """The share of `asked` documents of `length` tokens in which the model retrieves the value."""
    rng = random.Random(f"{seed}/ask/{length}")
    values = rng.choices(VALUES, k=asked)
    begin = 0 if model.loaded.tokenizer.bos_id is None else 1
    prompts = [document(rng, length - 1 - begin, value, 1) for value in values]
    generations: Any = model.generate(prompts, raw=True, max_new_tokens=1, temperature=0)
    return sum(generation.text == value for generation, value in zip(generations, values, strict=True)) / asked


def table(workspace: Path, lengths: Sequence[int], asked: int) -> dict[float | None, dict[int, float]]:
    """The accuracy by factor (None: without YaRN) and length, for lengths within the positions that the factor gives."""
    accuracies: dict[float | None, dict[int, float]] = {}
    for factor in FACTORS:
        changes = {} if factor is None else {"rope_scaling_factor": factor, "rope_original_positions": TRAINED}
        model = mm.load("needle", workspace=workspace, backend="cpu", dtype="fp32", **changes)
        reach = [length for length in lengths if length <= model.loaded.config.max_position_embeddings]
        accuracies[factor] = {length: accuracy(model, length, asked=asked) for length in reach}
    return accuracies


def main() -> None:
    """Train the model, test it, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=700)
    parser.add_argument("--asked", type=int, default=200)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    lengths = [TRAINED // 2, TRAINED, TRAINED * 3 // 2, TRAINED * 2, TRAINED * 3, TRAINED * 4, TRAINED * 8]
    with tempfile.TemporaryDirectory() as folder:
        run = train(Path(folder), steps=options.steps, seed=options.seed, threads=options.threads)
        manifest = run.manifest
        print(f"{manifest['parameters']:,} parameters, trained {manifest['seconds']:.0f} s on up to {TRAINED} tokens")
        accuracies = table(Path(folder), lengths, options.asked)
    print(f"{'tokens':<12}" + "".join(f"{length:>7}" for length in lengths))
    for factor, row in accuracies.items():
        name = "no YaRN" if factor is None else f"factor {factor:g}"
        print(f"{name:<12}" + "".join(f"{row[n]:7.2f}" if n in row else f"{'-':>7}" for n in lengths))


if __name__ == "__main__":
    main()
