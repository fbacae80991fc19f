"""Focal loss for fine-tuning: tokens that the model already predicts well weigh less. Imports no torch."""

from collections.abc import Iterable

import attrs

from mm.contracts import AlgorithmSpec, Needs, hookimpl, option


@attrs.frozen(kw_only=True)
class FocalConfig:
    """The options that `mm train --algo focal` has beside the common ones."""

    gamma: float = option(2.0, help="How strongly well-predicted tokens are discounted; 0 is sft.", within="[0, inf)")


@hookimpl
def mm_algorithms() -> Iterable[AlgorithmSpec]:
    """The algorithm."""
    yield AlgorithmSpec(
        name="focal",
        summary="Fine-tuning on conversations with focal loss.",
        target="mm_example.focal.algorithm:Focal",
        config=FocalConfig,
        needs=Needs(data="chat"),
        defaults={"learning_rate": 1e-4, "global_batch_size": 16, "max_length": 768},
        starts_from=("pretrain",),
    )
