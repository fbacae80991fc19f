"""Pre-training: next-token prediction on plain text."""

from collections.abc import Iterable

from mm.contracts import AlgorithmSpec, Needs, hookimpl


@hookimpl
def mm_algorithms() -> Iterable[AlgorithmSpec]:
    """The algorithm "pretrain", with MiniMind's settings. It makes a new model unless --from names one."""
    yield AlgorithmSpec(
        name="pretrain",
        summary="Next-token prediction on text.",
        target="mm.plugins.algorithms.next_token:NextToken",
        needs=Needs(data="text"),
        defaults={"learning_rate": 5e-4, "global_batch_size": 256, "max_length": 340},
        new_model=("dense", "minimind2-small"),
    )
