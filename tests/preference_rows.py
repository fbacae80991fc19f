"""Pairs of answers, the same answers with verdicts, and settings to learn from them with."""

from __future__ import annotations

ROWS = [
    {"prompt": f"say {n}", "chosen": f"number {n} " * (1 + n % 4), "rejected": f"no {'way ' * (n % 5)}{n}"} for n in range(8)
]  # fmt: skip
VERDICTS = [
    {"prompt": row["prompt"], "completion": row[side], "label": side == "chosen"}
    for row in ROWS
    for side in ("chosen", "rejected")
]
SMALL = {"log_interval": 1, "learning_rate": 3e-3, "max_steps": 4, "global_batch_size": 4, "seed": 7}
