"""Low-rank adaptation: its settings, without torch."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from attrs import Attribute, frozen
from attrs.validators import ge, gt, lt, optional

from mm.core.configs import AdapterConfig
from mm.core.hooks import hookimpl
from mm.core.options import Refused, option
from mm.core.records import AdapterSpec

_INIT = "kaiming"


def _from_files(config: LoraConfig, attribute: Attribute[Any], value: str) -> None:
    if value and config.target:
        raise Refused("target", f"'target' cannot be chosen beside {value}: the weights there say what they belong to")
    if value and config.init != _INIT:
        raise Refused("init", f"'init' cannot be chosen beside {value}: the weights there are what it begins with")


@frozen(kw_only=True)
class LoraConfig(AdapterConfig):
    """W + scale * B A (arXiv:2106.09685), with scale = alpha / rank."""

    rank: int | None = option(None, help="Rank of each update; by default 16, or that of --lora-from.", validator=optional(gt(0)))
    alpha: float | None = option(
        None, help="Updates are scaled by alpha / rank; by default the rank, or that of --lora-from.", validator=optional(gt(0.0))
    )
    dropout: float = option(0.0, help="Share of an update's inputs that are dropped in training.", validator=[ge(0.0), lt(1.0)])
    target: tuple[str, ...] = option(
        (),
        help="Pattern of names, such as q_proj or mlp.*, of the weights to adapt; may be given several times. By default "
        "the architecture's own choice, which is every projection of attention and feed-forward in dense and moe; routed "
        "experts need a pattern that says experts.",
    )
    init: str = option(_INIT, help="Draw A uniformly after Kaiming, or normally; B is zero.", choices=("kaiming", "normal"))
    rslora: bool = option(False, help="Scale by alpha / sqrt(rank) instead (rsLoRA, arXiv:2312.03732).")
    from_: str = option(
        "", help="Go on with the adapter of a run, of a folder in PEFT's layout or of a MiniMind .pth.", validator=_from_files
    )


@hookimpl
def mm_adapters() -> Iterable[AdapterSpec]:
    """The part."""
    yield AdapterSpec(
        name="lora",
        summary="LoRA: low-rank updates of the projections, saved in PEFT's layout.",
        target="mm.plugins.adapters.lora.adapter:Lora",
        config=LoraConfig,
    )
