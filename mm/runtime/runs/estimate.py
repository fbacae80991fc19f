"""Estimates of the disk space of a training, from its settings and the sizes of its model."""

from __future__ import annotations

from collections.abc import Mapping

from mm.core.configs import ArchitectureConfig
from mm.core.run import Run
from mm.runtime.runs.plan_memory import FLOAT, adapted, moments
from mm.runtime.text.wording import size_text
from mm.runtime.training.save_schedule import PARTS


def disk(run: Run, config: ArchitectureConfig, tokens: float) -> dict[str, int]:
    """Bytes by purpose, at most: checkpoints with the optimizer's state, the models, and the token cache, in which a token
    takes an id and a mark."""
    settings, size = run.train, FLOAT * config.num_parameters()
    optimizer = int(sum(moments(run, config) for role in run.needs.trainable if not adapted(run, role)))
    others = size * (len(run.needs.trainable) - 1)
    per_token = 3 if config.vocab_size < 2**16 else 5
    return {
        "checkpoints": settings.keep_checkpoints * (size + others + optimizer), "model": size, "best": size * settings.keep_best,
        "token cache": int(tokens * per_token),
    }  # fmt: skip


def saving(run: Run, steps: int) -> str:
    """When checkpoints are written, and how many of them are kept."""
    settings = run.train
    when = [f"every {settings.save_interval:,} steps"] if settings.save_interval else []
    if settings.save_minutes is not None:
        when.append(f"every {settings.save_minutes:g} minutes")
        if not settings.save_interval:
            when.append(f"after each tenth of the run ({-(-steps // PARTS):,} steps)")
    return f"{', '.join([*when, 'at the end'])}; the newest {settings.keep_checkpoints} are kept"


def sum_text(parts: Mapping[str, int], of: str = "") -> str:
    """`about 1.4 GiB of OF: weights 100 MiB, ...`, the largest first."""
    listed = sorted(((size, name) for name, size in parts.items() if size), reverse=True)
    kinds = ", ".join(f"{name} {size_text(size)}" for size, name in listed)
    return f"about {size_text(sum(parts.values()))}{of and f' of {of}'}: {kinds}"
