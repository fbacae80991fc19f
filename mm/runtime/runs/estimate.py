"""Rough estimates of the memory and the disk space of a training, from its settings and the sizes of its model."""

from __future__ import annotations

from collections.abc import Mapping

from mm.core.configs import ArchitectureConfig
from mm.core.run import Run
from mm.runtime.training.save_schedule import PARTS

_WEIGHT = 4  # bytes: parameters, their gradients and the optimizer's moments are float32
_MOMENTS = {"adamw": 2, "muon": 1}
_PROGRAM = 400 * 2**20  # Python and PyTorch
_UNIT = ("B", "KiB", "MiB", "GiB", "TiB")


def memory(run: Run, config: ArchitectureConfig, tokens_per_step: float) -> dict[str, int]:
    """Bytes by purpose. All models of the run count as large as the policy. An adapter's own parameters are left out, and its
    policy serves as the reference too."""
    settings, size = run.train, _WEIGHT * config.num_parameters()
    trained = size * sum(not _adapted(run, role) for role in run.needs.trainable)
    frozen = set(run.needs.roles) - set(run.needs.trainable)
    if _adapted(run, "policy"):
        frozen -= {"reference"}
    models = len(run.needs.trainable) + len(frozen)
    tokens = min(settings.micro_batch_tokens, max(tokens_per_step, settings.max_length))
    blocks = 1 if settings.activation_checkpointing else config.activations_per_token()
    optimizer = _MOMENTS[settings.optimizer] * trained
    return {
        "weights": models * size, "gradients": trained, "optimizer": optimizer, "activations": int(tokens * blocks * _WEIGHT),
        "copy for saving": trained + optimizer if settings.background_save else 0, "program": _PROGRAM,
    }  # fmt: skip


def disk(run: Run, config: ArchitectureConfig, tokens: float) -> dict[str, int]:
    """Bytes by purpose, at most: checkpoints with the optimizer's state, the models, and the token cache, in which a token
    takes an id and a mark."""
    settings, size = run.train, _WEIGHT * config.num_parameters()
    optimizer = sum(_MOMENTS[settings.optimizer] * size for role in run.needs.trainable if not _adapted(run, role))
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


def size_text(count: float) -> str:
    """`1.4 GiB`."""
    unit = 0
    while count >= 1000 and unit < len(_UNIT) - 1:
        count, unit = count / 1024, unit + 1
    return f"{count:.{0 if unit < 2 else 1}f} {_UNIT[unit]}"


def sum_text(parts: Mapping[str, int]) -> str:
    """`about 1.4 GiB: weights 100 MiB, ...`, the largest first."""
    listed = sorted(((size, name) for name, size in parts.items() if size), reverse=True)
    return f"about {size_text(sum(parts.values()))}: {', '.join(f'{name} {size_text(size)}' for size, name in listed)}"


def _adapted(run: Run, role: str) -> bool:
    return bool(run.select.adapter if role == "policy" else run.parts[f"role.{role}"].adapter)
