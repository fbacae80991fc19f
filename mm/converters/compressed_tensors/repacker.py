"""Quantises the projections of a folder in a Hugging Face layout, and writes what it did into its config.json."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import attrs
import torch

from mm.converters.compressed_tensors.contents import contents_of_folder
from mm.converters.compressed_tensors.rounding import dequantise, pack_words, quantise, unpack_words
from mm.runtime.devices.dtypes import torch_dtype
from mm.runtime.models.config_files import CONFIG, read_config
from mm.runtime.models.converter import Unsupported
from mm.runtime.models.head_sizes import note_on_heads
from mm.runtime.models.hf_files import read_tensors, weight_files
from mm.runtime.models.repacker import Contents, Packing, Repacker
from mm.runtime.models.shards import save_in_shards
from mm.runtime.models.tensors import cast

if TYPE_CHECKING:
    from torch import Tensor

# the matrices of attention, feed-forward and experts: not the embedding, the output layer, a router or a shared expert's gate
_QUANTISED = "_proj.weight"
_PLAIN = ("lm_head", "re:.*mlp[.]gate$", "re:.*mlp[.]shared_expert_gate$")
_METHOD = "compressed-tensors"
# of the weights of a row that share a scale; what vLLM's kernels take
_GROUPS = (128, 64, 32)


@attrs.frozen(kw_only=True)
class _Scheme:
    """How a value of `--quantise` is stored. Without `grouped` a row has one scale."""

    bits: int
    format: str
    grouped: bool
    activations: Mapping[str, Any] | None


_SCHEMES = {
    "w8a8": _Scheme(
        bits=8, format="int-quantized", grouped=False,
        activations={"num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True},
    ),
    "w4a16": _Scheme(bits=4, format="pack-quantized", grouped=True, activations=None),
}  # fmt: skip


class CompressedTensors(Repacker):
    """W8A8: 8 bits, one scale for each row, activations quantised for each token as they come. W4A16: 4 bits in groups."""

    layouts: ClassVar[tuple[str, ...]] = (
        "LlamaForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM", "Qwen2MoeForCausalLM", "Qwen3MoeForCausalLM",
    )  # fmt: skip
    quantisations: ClassVar[tuple[str, ...]] = tuple(_SCHEMES)
    always_quantised: ClassVar[bool] = True
    shards: ClassVar[bool] = True

    def pack(self, folder: Path, out: Path, packing: Packing) -> None:
        """See `Repacker`. All else, and the scales, are bf16 unless `--dtype` says otherwise. Raises Unsupported if
        the rows cannot be divided into groups."""
        scheme, dtype = _SCHEMES[packing.quantise], torch_dtype(packing.dtype or "bf16")
        tensors = read_tensors(folder)
        rows = {name: int(tensor.shape[1]) for name, tensor in tensors.items() if name.endswith(_QUANTISED)}
        group = _group(rows) if scheme.grouped else None
        state = cast({name: tensor for name, tensor in tensors.items() if name not in rows}, dtype)
        for name in rows:
            values, scales = quantise(tensors[name], scheme.bits, group or rows[name], dtype)
            state |= _stored(name.removesuffix("weight"), values, scales, scheme)
        weights = weight_files(folder)
        for file in folder.iterdir():
            if file not in weights:
                shutil.copy(file, out / file.name)
        save_in_shards(state, out, packing.max_shard_size)
        config = {**read_config(folder), "torch_dtype": str(dtype).removeprefix("torch.")}
        config["quantization_config"] = _description(scheme, group)
        (out / CONFIG).write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        packing.say(f"{len(rows)} matrices: {scheme.bits} bits, {f'groups of {group}' if group else 'one scale for each row'}")
        if note := note_on_heads(config):
            packing.say(note)

    def contents(self, path: Path) -> Contents | None:
        """See `Repacker`: of a folder whose config.json says compressed-tensors."""
        config = read_config(path) if (path / CONFIG).is_file() else {}
        described = config.get("quantization_config")
        if not isinstance(described, Mapping) or described.get("quant_method") != _METHOD:
            return None
        return contents_of_folder(path, config, {scheme.format: name for name, scheme in _SCHEMES.items()})

    def dequantised(self, path: Path, folder: Path) -> Mapping[str, Tensor]:
        """See `Repacker`."""
        stored, scheme = read_tensors(path), _scheme_of(read_config(path))
        found = {name: tensor for name, tensor in stored.items() if tensor.is_floating_point() and not name.endswith("_scale")}
        for name, scales in stored.items():
            if name.endswith(".weight_scale"):
                stem = name.removesuffix("_scale")
                values = unpack_words(stored[f"{stem}_packed"], scheme.bits) if scheme.grouped else stored[stem]
                found[stem] = dequantise(values, scales)
        return found


def _group(rows: Mapping[str, int]) -> int:
    """The largest group that divides all rows: the format says it once for all of them."""
    if found := next((size for size in _GROUPS if all(row % size == 0 for row in rows.values())), 0):
        return found
    name = next(name for name, row in rows.items() if row % _GROUPS[-1])
    sizes = ", ".join(map(str, _GROUPS))
    raise Unsupported(f"w4a16 divides a row into groups of {sizes} weights, and those of {name} have {rows[name]}. Use w8a8.")


def _stored(stem: str, values: Tensor, scales: Tensor, scheme: _Scheme) -> dict[str, Tensor]:
    """The tensors of one matrix in the file."""
    if not scheme.grouped:
        return {f"{stem}weight": values, f"{stem}weight_scale": scales}
    return {
        f"{stem}weight_packed": pack_words(values, scheme.bits), f"{stem}weight_scale": scales,
        f"{stem}weight_shape": torch.tensor(values.shape),
    }  # fmt: skip


def _description(scheme: _Scheme, group: int | None) -> dict[str, Any]:
    """The value of `quantization_config`."""
    weights = {
        "num_bits": scheme.bits, "type": "int", "symmetric": True, "strategy": "group" if group else "channel",
        "group_size": group, "dynamic": False,
    }  # fmt: skip
    layers = {
        "targets": ["Linear"], "weights": weights, "input_activations": scheme.activations, "output_activations": None,
        "format": scheme.format,
    }  # fmt: skip
    return {
        "quant_method": _METHOD, "format": scheme.format, "quantization_status": "compressed",
        "config_groups": {"group_0": layers}, "ignore": list(_PLAIN),
    }  # fmt: skip


def _scheme_of(config: Mapping[str, Any]) -> _Scheme:
    kind = config["quantization_config"]["format"]
    return next(scheme for scheme in _SCHEMES.values() if scheme.format == kind)
