"""The rotary settings of the Llama-like formats: `rope_theta` and `rope_scaling`, or version 5's `rope_parameters`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mm.runtime.models.converter import Unsupported, require_supported

if TYPE_CHECKING:
    from mm.plugins.architectures.dense import DenseConfig

_SUPPORTED: dict[str, tuple[Any, ...]] = {"partial_rotary_factor": (1, None)}
_SUPPORTED_BY_YARN: dict[str, tuple[Any, ...]] = {"mscale": (None,), "mscale_all_dim": (None,), "truncate": (True, None)}
# type -> their key: our field. `factor` and the original length are read for all types.
_FIELDS: dict[str, dict[str, str]] = {
    "yarn": {"attention_factor": "rope_attention_factor", "beta_fast": "rope_beta_fast", "beta_slow": "rope_beta_slow"},
    "linear": {},
    "llama3": {"low_freq_factor": "rope_low_freq_factor", "high_freq_factor": "rope_high_freq_factor"},
}
_ORIGINAL = "original_max_position_embeddings"
# the keys that transformers has no default for
_REQUIRED = {"yarn": ("factor",), "linear": ("factor",), "llama3": ("factor", "low_freq_factor", "high_freq_factor", _ORIGINAL)}
_REFUSED = {
    "dynamic": "its frequencies depend on the length so far, and a cache holds keys that were rotated by others",
    "longrope": "its frequencies depend on the length so far, and a cache holds keys that were rotated by others",
}


def read_rope(hf: Mapping[str, Any]) -> dict[str, Any]:
    """The rotary settings of a decoder's config. Raises Unsupported for a type or a setting that our decoder does not compute."""
    rope = hf.get("rope_scaling") or hf.get("rope_parameters") or {}
    if not isinstance(rope, Mapping):
        raise Unsupported(f"rope_scaling is {rope!r:.60}; expected an object.")
    if any(isinstance(value, Mapping) for value in rope.values()):
        raise Unsupported("the rotary scaling is different for each kind of layer; only one for all layers is supported.")
    require_supported(rope, _SUPPORTED)
    theta = {"rope_theta": _number(rope.get("rope_theta") or hf.get("rope_theta") or 10000.0)}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return theta
    if not isinstance(kind, str) or kind not in _FIELDS:
        reason = f" ({_REFUSED[kind]})" if isinstance(kind, str) and kind in _REFUSED else ""
        supported = ", ".join(map(repr, ("default", *_FIELDS)))
        raise Unsupported(f"the rotary scaling is {kind!r:.60}{reason}; supported are {supported}.")
    if missing := [name for name in _REQUIRED[kind] if rope.get(name) is None]:
        raise Unsupported(f"{missing[0]} of the rotary scaling {kind!r} is missing.")
    if kind == "yarn":
        require_supported(rope, _SUPPORTED_BY_YARN)
    original = rope.get(_ORIGINAL) or (hf["max_position_embeddings"] if kind == "yarn" else None)
    given = {ours: _number(rope[name]) for name, ours in _FIELDS[kind].items() if rope.get(name)}
    scaling = {"rope_type": kind, "rope_scaling_factor": _number(rope["factor"]), "rope_original_positions": original}
    return theta | scaling | given


def write_rope(config: DenseConfig) -> dict[str, Any] | None:
    """The value of `rope_scaling`, in the style of version 4; None without scaling."""
    if config.rope_scaling_factor is None:
        return None
    # if omitted, YaRN's attention factor is 0.1 * ln(factor) + 1 in transformers as here
    own = {name: getattr(config, ours) for name, ours in _FIELDS[config.rope_type].items()}
    return {
        "rope_type": config.rope_type,
        "factor": config.rope_scaling_factor,
        **({} if config.rope_type == "linear" else {_ORIGINAL: config.original_positions}),
        **{name: value for name, value in own.items() if value is not None},
    }


def _number(value: Any) -> Any:
    """A whole number as the float that it stands for; the config refuses whatever is not a number."""
    return float(value) if type(value) is int and abs(value) < 2**53 else value
