"""Supervised fine-tuning of a low-rank adapter: sft with MiniMind's name and settings for it."""

from collections.abc import Iterable

from mm.contracts import AlgorithmSpec, Needs, hookimpl


@hookimpl
def mm_algorithms() -> Iterable[AlgorithmSpec]:
    """The algorithm "lora", with MiniMind 3's settings. Any other algorithm can train an adapter too (--adapter lora)."""
    yield AlgorithmSpec(
        name="lora",
        summary="Supervised fine-tuning of a LoRA adapter (sft with --adapter lora).",
        target="mm.plugins.algorithms.next_token:NextToken",
        needs=Needs(data="chat"),
        defaults={"adapter": "lora", "learning_rate": 1e-4, "global_batch_size": 32, "max_length": 340, "epochs": 10},
        starts_from=("sft",),
    )
