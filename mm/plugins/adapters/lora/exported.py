"""A model's adapted weights as PEFT uses them: on an export of the model, in a format of transformers."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mm.plugins.adapters.lora.places import Place
    from mm.runtime.nn.model import Model

_SHARED = "shared_expert"
_JOINED = {"gate_proj", "up_proj"}


def export_scale(model: Model, place: Place) -> float:
    """The factor of a weight in the export. B is scaled by it too, so that W + B A is scaled as a whole."""
    return next((scale for end, scale in model.config.exported_scales.items() if place.name.endswith(f".{end}")), 1.0)


def peft_holds(model: Model, place: Place, adapted: Collection[str]) -> bool:
    """True if PEFT can load the update of this place, along with those of the places named in `adapted`.

    transformers 5 stacks the experts' weights and fuses gate_proj with up_proj. PEFT 0.21 converts updates to this layout for
    Qwen3-MoE, if both of the two are adapted. It does not for Qwen2-MoE, the one with a shared expert
    (_MODEL_TO_CONVERSION_PATTERN and _MOE_FUSED_TARGETS of its transformers_weight_conversion).
    """
    if not place.count:
        return True
    if any(_SHARED in name.split(".") for name, _ in model.named_modules()):
        return False
    stem = place.name.removesuffix(place.leaf)
    return place.leaf not in _JOINED or all(stem + leaf in adapted for leaf in _JOINED)
