"""Supervised fine-tuning on reasoning: the tags around a thought and the final answer have a larger weight."""

from __future__ import annotations

from collections.abc import Iterable

from attrs import frozen
from attrs.validators import min_len

from mm.contracts import AlgorithmSpec, Needs, hookimpl, option


@frozen(kw_only=True)
class ReasonConfig:
    """The tags, the weight of their tokens, and what the weighted sum is divided by."""

    tag_weight: float = option(10.0, help="Weight of a tag's tokens; every other token weighs 1.", within="(0, inf)")
    tag: tuple[str, ...] = option(
        ("<think>", "</think>", "<answer>", "</answer>"),
        help="Text that is a tag; may be given several times.",
        validator=min_len(1),
    )
    divide_by: str = option(
        "weights", help="Divide the weighted sum by all weights of the step, or by the number of learned tokens (MiniMind 2's).",
        choices=("weights", "tokens"),
    )  # fmt: skip


@hookimpl
def mm_algorithms() -> Iterable[AlgorithmSpec]:
    """The algorithm "reason", with MiniMind 2's settings."""
    yield AlgorithmSpec(
        name="reason",
        summary="Supervised fine-tuning on reasoning; think and answer tags weigh more.",
        target="mm.plugins.algorithms.reason.algorithm:Reason",
        config=ReasonConfig,
        needs=Needs(data="chat"),
        defaults={"learning_rate": 1e-6, "global_batch_size": 8, "max_length": 720},
        starts_from=("dpo", "sft"),
    )
