"""Model folders: config.json, model.safetensors and the tokenizer with its fingerprint; finding and loading them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import attrs
import torch
from safetensors.torch import load_model, save_model
from torch import nn

from mm.core.backend import Backend
from mm.core.data.tokenizer import Tokenizer
from mm.core.errors import CheckpointError, UsageError, close_match
from mm.core.plugins import PluginManager
from mm.core.records import ArchitectureSpec, ConverterSpec
from mm.core.training.storage import INDEX, verify
from mm.core.workspace import Workspace

WEIGHTS = "model.safetensors"


@attrs.frozen(eq=False)
class LoadedModel:
    """A model with what belongs to it. `path` is the folder that it came from, or None for a new one."""

    architecture: str
    config: Any
    model: nn.Module
    tokenizer: Tokenizer
    path: Path | None = None


def new_model(plugins: PluginManager, name: str, config: Any, tokenizer: Tokenizer, backend: Backend) -> LoadedModel:
    """A model with fresh weights on the CPU, its vocabulary as large as the tokenizer's."""
    config = attrs.evolve(config, vocab_size=tokenizer.vocab_size)
    model = plugins.load("architecture", name)(config, backend.attention())
    return LoadedModel(name, config, model, tokenizer)


def save_model_folder(folder: Path, loaded: LoadedModel) -> None:
    """Write a model's files into an existing folder. Tied weights are stored once."""
    save_model(loaded.model, str(folder / WEIGHTS), metadata={"format": "pt"})
    loaded.tokenizer.save(folder)
    config = {
        "model_type": "mm",
        "architecture": loaded.architecture,
        "config": attrs.asdict(loaded.config),
        "tokenizer_fingerprint": loaded.tokenizer.fingerprint,
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")


def read_config(folder: Path) -> dict[str, Any]:
    """config.json of a folder. Raises UsageError when there is none."""
    try:
        return json.loads((folder / "config.json").read_text(encoding="utf-8"))  # type: ignore[no-any-return]
    except FileNotFoundError:
        raise UsageError(f"{folder} holds no model: it has no config.json.") from None
    except ValueError as error:
        raise CheckpointError(f"{folder / 'config.json'}: {error}") from None


def find_model(text: str, workspace: Workspace) -> Path:
    """The model folder that a run's name or a path means; a run without a finished model gives its newest checkpoint."""
    path = Path(text)
    if (path / "config.json").exists():
        return path
    run = next((r for r in workspace.runs() if r.name == text or r.path.resolve() == path.resolve()), None)
    if run is None:
        names = [r.name for r in workspace.runs()]
        raise UsageError(f"No model at {text!r}: neither a run of this workspace nor a model folder.{close_match(text, names)}")
    if (run.model / "config.json").exists():
        return run.model
    if found := checkpoints(run.checkpoints):
        return found[-1]
    raise UsageError(f"Run {run.name} has no model yet.")


def checkpoints(folder: Path) -> list[Path]:
    """The complete checkpoints of a run, the oldest first."""
    return sorted(folder.glob("step-*[0-9]")) if folder.is_dir() else []


def load_model_folder(plugins: PluginManager, folder: Path, backend: Backend) -> LoadedModel:
    """A model from its own folder or, through the converter that reads it, from a foreign one; on the CPU, in float32.

    Raises CheckpointError for damaged files, missing or unexpected tensors, and a tokenizer that does not belong.
    """
    config = read_config(folder)
    if config.get("model_type") != "mm":
        return _import_foreign(plugins, folder, config, backend)
    if (folder / INDEX).exists():
        verify(folder)
    spec = plugins.get("architecture", config["architecture"])
    assert isinstance(spec, ArchitectureSpec)
    model_config = spec.config(**_as_tuples(config["config"]))
    tokenizer = Tokenizer.load(folder)
    if tokenizer.fingerprint != config["tokenizer_fingerprint"]:
        raise CheckpointError(
            f"{folder}: the tokenizer there ({tokenizer.fingerprint}) is not the model's "
            f"({config['tokenizer_fingerprint']}). Put the tokenizer with that fingerprint back."
        )
    model = plugins.load("architecture", spec.name)(model_config, backend.attention())
    try:
        load_model(model, folder / WEIGHTS, strict=True)
    except RuntimeError as error:
        raise CheckpointError(f"{folder / WEIGHTS} does not fit its config.json: {error}") from None
    return LoadedModel(spec.name, model_config, model, tokenizer, folder)


def _import_foreign(plugins: PluginManager, folder: Path, config: dict[str, Any], backend: Backend) -> LoadedModel:
    names = config.get("architectures") or [config.get("model_type", "?")]
    specs = [s for s in plugins.specs("converter") if isinstance(s, ConverterSpec) and set(names) & set(s.reads)]
    if not specs:
        known = sorted({n for s in plugins.specs("converter") if isinstance(s, ConverterSpec) for n in s.reads})
        raise UsageError(f"{folder}: no converter reads {', '.join(names)}. Readable: {', '.join(known) or 'none'}.")
    spec = specs[0]
    model_config, state = plugins.load("converter", spec.name)().read(folder)
    model = plugins.load("architecture", spec.architecture)(model_config, backend.attention())
    incompatible = model.load_state_dict(state, strict=False)
    missing = [n for n in incompatible.missing_keys if n != "lm_head.weight" or not model_config.tie_word_embeddings]
    if missing or incompatible.unexpected_keys:
        raise CheckpointError(f"{folder}: missing {missing[:4]}, unexpected {incompatible.unexpected_keys[:4]}.")
    return LoadedModel(spec.architecture, model_config, model, Tokenizer.load(folder), folder)


def _as_tuples(values: dict[str, Any]) -> dict[str, Any]:
    return {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}


def step_of(checkpoint: Path) -> int:
    """The step in a checkpoint's name."""
    found = re.fullmatch(r"step-(\d+)", checkpoint.name)
    return int(found.group(1)) if found else 0


def freeze(model: nn.Module, device: torch.device, dtype: torch.dtype | None = None) -> nn.Module:
    """The model for inference: on the device, in `eval()`, without gradients."""
    return model.to(device=device, dtype=dtype).eval().requires_grad_(False)
