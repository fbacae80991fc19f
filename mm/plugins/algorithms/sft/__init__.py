"""Supervised fine-tuning: next-token prediction on the assistant's tokens of conversations."""

from collections.abc import Iterable

from mm.contracts import AlgorithmSpec, Needs, hookimpl


@hookimpl
def mm_algorithms() -> Iterable[AlgorithmSpec]:
    """The algorithm "sft", with MiniMind 3's settings. It continues the newest pretrained model unless --from names another."""
    yield AlgorithmSpec(
        name="sft",
        summary="Supervised fine-tuning on conversations.",
        target="mm.plugins.algorithms.next_token:NextToken",
        needs=Needs(data="chat"),
        defaults={"learning_rate": 1e-5, "global_batch_size": 16, "max_length": 768, "epochs": 2},
        starts_from=("pretrain",),
    )
