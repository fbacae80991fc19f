"""The shapes of a training's micro-batches, from the settings and the lengths of the rows."""

from __future__ import annotations

import attrs

from mm.core.run import Run
from mm.runtime.runs.count import Count

_SMALLEST_CACHE = 256  # tokens of a slot of the engine's cache, of which it has a power of two


@attrs.frozen(kw_only=True)
class Batch:
    """The largest micro-batch of one rank.

    - `tokens`: all of its tokens; `rows`: those that are computed, without repeated ones of shared prompts; `targets`: those that
      are learned; `length`: that of the document which a token is in, as a mean over tokens.
    - `several`: a step has more than one micro-batch.
    - Of an algorithm that samples: `prompts` and `samples` (completions) of a rank's rollout, tokens of a `prompt`, and the
      `capacity` of a slot in the engine's cache, in tokens.
    """

    tokens: float
    rows: float
    targets: float
    length: float
    several: bool
    prompts: int = 0
    samples: int = 0
    prompt: float = 0.0
    capacity: int = 1


def batch_of(run: Run, counted: Count, ranks: int = 1) -> Batch:
    """The largest micro-batch of a run on so many ranks."""
    if run.needs.generates:
        return _of_completions(run, counted, ranks)
    settings = run.train
    step = counted.tokens / max(1, counted.units) * settings.global_batch_size / ranks
    tokens = min(max(settings.micro_batch_tokens, counted.length), step)
    return Batch(
        tokens=tokens, rows=tokens, targets=tokens * counted.targets, length=min(counted.length, settings.max_length),
        several=step > settings.micro_batch_tokens,
    )  # fmt: skip


def _of_completions(run: Run, counted: Count, ranks: int) -> Batch:
    """As long as completions may be."""
    settings, config = run.train, run.algorithm
    group, new = getattr(config, "num_generations", 1), getattr(config, "max_new_tokens", settings.max_length)
    prompt = counted.tokens / max(1, counted.units)
    prompts = max(1, settings.global_batch_size // ranks)
    length, samples = prompt + new, prompts * group
    step = samples / getattr(config, "mini_batches", 1) * length
    tokens = min(max(settings.micro_batch_tokens, length), step)
    together = max(1.0, min(group, tokens / length)) if not settings.dropout else 1.0  # with dropout no prompt is shared
    return Batch(
        tokens=tokens, rows=tokens * (prompt / together + new) / length, targets=tokens * new / length, length=length,
        several=step > settings.micro_batch_tokens, prompts=prompts, samples=samples, prompt=prompt,
        capacity=max(_SMALLEST_CACHE, 1 << (int(length) - 1).bit_length()),
    )  # fmt: skip
