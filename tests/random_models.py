"""Models with random weights everywhere, saved as folders: what a format does to each number then shows in the logits."""

from __future__ import annotations

from pathlib import Path

import torch

from mm.core.plugins import PluginManager
from mm.plugins.architectures.dense import DenseConfig
from mm.plugins.architectures.moe import MoEConfig
from mm.runtime.devices.backend import Backend
from mm.runtime.models.folder import LoadedModel, new_model, save_model_folder
from mm.runtime.models.tensors import named_tensors
from mm.runtime.text.tokenizer import Tokenizer


def random_model(
    plugins: PluginManager, tokenizer: Tokenizer, config: DenseConfig, folder: Path, spread: float
) -> LoadedModel:
    """A model whose initial weights are all moved by a normal distribution of that deviation, saved in the new folder."""
    torch.manual_seed(0)
    loaded = new_model(plugins, "moe" if isinstance(config, MoEConfig) else "dense", config, tokenizer, Backend())
    for tensor in named_tensors(loaded.model).values():
        tensor.add_(torch.randn_like(tensor) * spread)
    folder.mkdir(parents=True)
    save_model_folder(folder, loaded)
    return loaded
