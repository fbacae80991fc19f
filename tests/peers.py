"""What the comparisons with TRL share: the same weights for both libraries, and when gradients are the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import mm
from mm.core.plugins import PluginManager
from mm.runtime.devices.backend import Backend
from mm.runtime.models.folder import load_model_folder
from mm.runtime.nn.batch import Unit
from mm.runtime.training.context import Context
from mm.runtime.training.distributed import World
from mm.runtime.training.roles import Role
from mm.testing import tiny_run, tiny_tokenizer

PLUGINS = PluginManager.discover(environ={})
ROLES = ("policy", "reference")
# for policy and reference: our folder, and the same weights for transformers
Folders = dict[str, tuple[Path, Path]]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    root, found = tmp_path_factory.mktemp("peers"), {}
    for seed, name in enumerate(ROLES):
        run = tiny_run(root, "pretrain", run=name, seed=seed, max_steps=2, learning_rate=3e-2)
        found[name] = run.model, mm.convert(run.model, root / f"{name}-llama", to="llama")
    return found


def our_algorithm(kind: Any, config: Any, folders: Folders, units: list[Unit], **tools: Any) -> Any:
    """An algorithm with these models."""
    models = {name: load_model_folder(PLUGINS, folder, Backend()).model for name, (folder, _) in folders.items()}
    roles = {name: Role(name, model, trainable=name == "policy") for name, model in models.items()}
    lent = Context(tokenizer=tiny_tokenizer(), world=World(), seed=3, more_rows=lambda n: units[:n], units=units, **tools)
    return kind(config, roles, lent)


def gradients_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def assert_same(loss: float, gradients: dict[str, Tensor], other: float, model: nn.Module) -> None:
    assert loss == pytest.approx(other, rel=1e-5, abs=1e-6)
    own = gradients_of(model)
    assert own.keys() == gradients.keys()
    for name, expected in own.items():
        torch.testing.assert_close(gradients[name], expected, atol=2e-5, rtol=1e-3, msg=lambda text, n=name: f"{n}: {text}")


def settings(folder: Path, rows: int) -> dict[str, Any]:
    """TRL's settings of one plain step in float32."""
    return {
        "output_dir": str(folder), "use_cpu": True, "bf16": False, "gradient_checkpointing": False, "report_to": "none",
        "per_device_train_batch_size": rows,
    }  # fmt: skip
