"""Supervised fine-tuning of a low-rank adapter: sft under the name and with the settings that MiniMind has for it."""

from collections.abc import Iterable

from mm.contracts import AlgorithmSpec, Needs, hookimpl


@hookimpl
def mm_algorithms() -> Iterable[AlgorithmSpec]:
    """lora. Settings after MiniMind 3's; any other algorithm takes an adapter too."""
    yield AlgorithmSpec(
        name="lora",
        summary="Supervised fine-tuning of a LoRA adapter (sft with --adapter lora).",
        target="mm.plugins.algorithms.next_token:NextToken",
        needs=Needs(data="chat"),
        defaults={"adapter": "lora", "learning_rate": 1e-4, "global_batch_size": 32, "max_length": 340, "epochs": 10},
        starts_from=("sft",),
    )
