"""Small models with random weights for exports, and what a GGUF file must hold, computed without the converter's tables."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mm.core.plugins import PluginManager
from mm.core.records import ArchitectureSpec
from mm.core.workspace import Workspace
from mm.plugins.architectures.dense import GEN3, DenseConfig
from mm.plugins.architectures.moe import GEN3_EXPERTS, MoEConfig
from mm.runtime.models.convert import convert
from mm.runtime.models.folder import LoadedModel, save_model_folder
from mm.runtime.models.storage import seal
from mm.runtime.models.tensors import named_tensors
from mm.runtime.nn.kernels import Kernels
from mm.runtime.text.tokenizer import Tokenizer

SIZES: dict[str, Any] = {
    "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "intermediate_size": 32,
}  # fmt: skip
# kind -> (config class, settings, llama.cpp's architecture)
KINDS: dict[str, tuple[type[DenseConfig], dict[str, Any], str]] = {
    "2": (DenseConfig, {}, "llama"),
    "2-bias": (DenseConfig, {"attention_bias": "qkv"}, "qwen2"),
    "3": (DenseConfig, GEN3, "qwen3"),
    "2-moe": (MoEConfig, {}, "bailingmoe"),
    "3-moe": (MoEConfig, {**GEN3, **GEN3_EXPERTS}, "qwen3moe"),
}


def made(kind: str, plugins: PluginManager, tokenizer: Tokenizer, seed: int = 0, **changes: Any) -> LoadedModel:
    """A model of a kind; no tensor, norms included, is constant."""
    torch.manual_seed(seed)
    cls, settings, _ = KINDS[kind]
    config = cls(**{**SIZES, **settings, "vocab_size": tokenizer.vocab_size, **changes})
    spec = plugins.get(ArchitectureSpec, "moe" if cls is MoEConfig else "dense")
    model = spec.load()(config, Kernels()).eval()
    for tensor in named_tensors(model).values():
        tensor.add_(torch.randn_like(tensor) * 0.1)
    return LoadedModel(spec.name, config, model, tokenizer)


def exported(plugins: PluginManager, loaded: LoadedModel, out: Path, to: str | None = None, **settings: Any) -> Path:
    """The model, converted by way of a folder of ours."""
    source = out.parent / f"{out.name}-source"
    source.mkdir(parents=True)
    save_model_folder(source, loaded)
    seal(source)
    return convert(plugins, str(source), out, to, workspace=Workspace(out.parent), **settings)


def read_gguf(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray], dict[str, str]]:
    """(settings, dequantised tensors, types) of a file, by the package's own reader."""
    import gguf

    reader = gguf.GGUFReader(path)
    values = {name: field.contents() for name, field in reader.fields.items()}
    tensors = {tensor.name: gguf.quants.dequantize(tensor.data, tensor.tensor_type) for tensor in reader.tensors}
    return values, tensors, {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}


def expected_tensors(loaded: LoadedModel) -> dict[str, np.ndarray]:
    """The tensors that llama.cpp reads, by its names."""
    config, state = loaded.config, named_tensors(loaded.model)
    found = {}
    for name, tensor in state.items():
        place = name.split(".")
        if place[:2] == ["model", "layers"]:
            found[f"blk.{place[2]}.{_name('.'.join(place[3:]))}"] = _in_place(name, tensor, config)
        else:
            found[_OUTER.get(name, "token_embd.weight")] = tensor
    if isinstance(config, MoEConfig) and not config.qk_norm:  # bailingmoe reads no tied output layer
        found.setdefault("output.weight", found["token_embd.weight"])
    return {name: tensor.numpy() for name, tensor in found.items()}


_OUTER = {"lm_head.weight": "output.weight", "model.norm.weight": "output_norm.weight"}
_NAMES = {
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm", "mlp.gate": "ffn_gate_inp",
    **{f"mlp.{part}_proj": f"ffn_{part}" for part in ("gate", "up", "down")},
    **{f"mlp.experts.{part}_proj": f"ffn_{part}_exps" for part in ("gate", "up", "down")},
    **{f"mlp.shared_expert.{part}_proj": f"ffn_{part}_shexp" for part in ("gate", "up", "down")},
}  # fmt: skip


def _name(ours: str) -> str:
    if ours in _NAMES:  # a stack of experts
        return f"{_NAMES[ours]}.weight"
    place, _, kind = ours.rpartition(".")
    return f"{_NAMES[place]}.{kind}"


def _in_place(name: str, tensor: Tensor, config: DenseConfig) -> Tensor:
    """Of q and k of generation 2, row 2i of a head is ours of i, and row 2i + 1 is ours of i + D/2."""
    if config.qk_norm or config.attention_bias == "qkv" or not name.endswith(("q_proj.weight", "k_proj.weight")):
        return tensor
    half = config.head_size // 2
    order = [head + i + part for head in range(0, tensor.shape[0], 2 * half) for i in range(half) for part in (0, half)]
    return tensor[order]
