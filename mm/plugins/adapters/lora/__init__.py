"""Low-rank adaptation (LoRA): its options and record. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from attrs import Attribute, frozen

from mm.core.configs import AdapterConfig
from mm.core.hooks import hookimpl
from mm.core.options import Refused, option
from mm.core.records import AdapterSpec

_INIT = "kaiming"


def _from_files(config: LoraConfig, attribute: Attribute[Any], value: str) -> None:
    if value and config.target:
        raise Refused("target", f"'target' cannot be combined with {value}: its tensors' names say which weights are adapted")
    if value and config.init != _INIT:
        raise Refused("init", f"'init' cannot be combined with {value}: the adapter starts with its tensors")


@frozen(kw_only=True)
class LoraConfig(AdapterConfig):
    """The options of W + scale * B A (arXiv:2106.09685), with scale = alpha / rank."""

    rank: int | None = option(None, help="Rank of each update; by default 16, or that of --lora-from.", within="[1, inf)")
    alpha: float | None = option(
        None, help="Updates are scaled by alpha / rank; by default the rank, or that of --lora-from.", within="(0, inf)"
    )
    dropout: float = option(0.0, help="Share of an update's inputs that are dropped in training.", within="[0, 1)")
    target: tuple[str, ...] = option(
        (),
        help="Pattern of names, such as q_proj or mlp.*, of the weights to adapt; may be given several times. By default "
        "the architecture's own choice: in dense and moe every projection of attention and feed-forward. Routed experts are "
        "adapted only by a pattern with the word experts.",
    )
    init: str = option(
        _INIT, help="Initialise A by Kaiming's uniform or by a normal distribution; B is zero.", choices=("kaiming", "normal")
    )
    rslora: bool = option(False, help="Scale by alpha / sqrt(rank) instead (rsLoRA, arXiv:2312.03732).")
    from_: str = option(
        "", help="Continue the adapter of a run, of a folder in PEFT's layout or of a MiniMind .pth.", validator=_from_files
    )


@hookimpl
def mm_adapters() -> Iterable[AdapterSpec]:
    """The adapter "lora"."""
    yield AdapterSpec(
        name="lora",
        summary="LoRA: low-rank updates of the projections, saved in PEFT's layout.",
        target="mm.plugins.adapters.lora.adapter:Lora",
        config=LoraConfig,
    )
