"""How PEFT sees a model's adapted weights: on an export of the model, in a format of transformers."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mm.plugins.adapters.lora.places import Place
    from mm.runtime.nn.model import Model

_SHARED = "shared_expert"
_JOINED = {"gate_proj", "up_proj"}


def export_scale(model: Model, place: Place) -> float:
    """How much larger a weight is there; so is B, for W + B A to become the export's."""
    return next((scale for end, scale in model.config.exported_scales.items() if place.name.endswith(f".{end}")), 1.0)


def peft_holds(model: Model, place: Place, adapted: Collection[str]) -> bool:
    """Whether PEFT can put in this place's update, beside those of the `adapted` names.

    transformers 5 stacks experts and joins their gate_proj and up_proj. PEFT 0.21 follows for Qwen3-MoE, where both of
    the two are adapted, and not for Qwen2-MoE, which is what has a shared expert (_MODEL_TO_CONVERSION_PATTERN and
    _MOE_FUSED_TARGETS of its transformers_weight_conversion).
    """
    if not place.count:
        return True
    if any(_SHARED in name.split(".") for name, _ in model.named_modules()):
        return False
    stem = place.name.removesuffix(place.leaf)
    return place.leaf not in _JOINED or all(stem + leaf in adapted for leaf in _JOINED)
