"""Sampling completions from the policy, and scoring them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from mm.runtime.generation.engine import Request, Sampling
from mm.runtime.training.rollouts.completions import Sample

if TYPE_CHECKING:
    from mm.runtime.nn.batch import Unit
    from mm.runtime.training.context import Context
    from mm.runtime.training.roles import Role
    from mm.runtime.training.rollouts.options import RolloutConfig


def start_group(unit: Unit, context: Context, key: tuple[int, ...], size: int) -> list[Sample]:
    """`size` samples of a prompt, without completions yet. The draws of a sample depend only on the seed, `key`, the row and the
    sample's number, not on ranks, slots or batches."""
    row, prompt = context.row(unit.row_index), (context.seed, *key, unit.row_index, unit.repeat)
    return [Sample.of(unit, row, (*prompt, number)) for number in range(size)]


def start_evaluation(units: Sequence[Unit], context: Context) -> list[Sample]:
    """One sample per held-out prompt, without completions yet. Every evaluation uses the same random streams."""
    return [Sample.of(unit, context.row(unit.row_index), (context.seed, -1, unit.row_index, 0)) for unit in units]


def request_turn(sample: Sample, turn: int, config: RolloutConfig, context: Context) -> Request:
    """The engine's request for the next turn of a sample."""
    tokenizer = context.tokenizer
    return Request(
        ids=tuple(sample.ids), max_new_tokens=config.max_new_tokens, stop=(tokenizer.eos_id, tokenizer.pad_id),
        sampling=Sampling(temperature=config.temperature, top_p=config.top_p, top_k=config.top_k, min_p=config.min_p),
        key=(*sample.key, turn),
    )  # fmt: skip


def complete(samples: Sequence[Sample], config: RolloutConfig, context: Context) -> None:
    """Let the engine continue each sample until it stops."""
    assert context.engine is not None
    completions = context.engine.generate([request_turn(sample, 0, config, context) for sample in samples])
    for sample, completion in zip(samples, completions, strict=True):
        sample.extend(completion, context.tokenizer.decode(completion.ids))


def score(samples: Sequence[Sample], context: Context) -> int:
    """Set each sample's score by the run's rewards. Returns the number of failed rewards."""
    scores = context.score([sample.unit.row_index for sample in samples], [sample.text for sample in samples])
    for index, sample in enumerate(samples):
        sample.score = scores.of(index)
    return sum(len(sample.score.failed) for sample in samples)


@contextmanager
def evaluation_mode(role: Role) -> Iterator[None]:
    """Inside the block the role's model is in `eval()`, without dropout. Afterwards a trained role is in training mode."""
    role.train(False)
    try:
        yield
    finally:
        role.train(True)
