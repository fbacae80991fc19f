"""Model folders: config.json, model.safetensors and the tokenizer with its fingerprint; saving and loading them."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import attrs
import torch
from safetensors import SafetensorError
from safetensors.torch import load_model, save_file
from torch import nn

from mm.core.configs import ArchitectureConfig
from mm.core.errors import CheckpointError, MMError
from mm.core.plugins import PluginManager
from mm.core.records import AdapterSpec, ArchitectureSpec
from mm.core.say import on_stderr
from mm.core.workspace import ADAPTER
from mm.runtime.devices.backend import Backend
from mm.runtime.models.adapter import Adapter
from mm.runtime.models.checks import check_finite, check_header, check_memory, check_size
from mm.runtime.models.config_files import CONFIG, saved_config, text_of
from mm.runtime.models.description import Described, describe
from mm.runtime.models.finding import cure, run_of
from mm.runtime.models.hf_files import header
from mm.runtime.models.load_settings import changed
from mm.runtime.models.provenance import naming_package, package_of
from mm.runtime.models.storage import INDEX, native_error, verify
from mm.runtime.models.tensors import named_tensors
from mm.runtime.nn.model import Model
from mm.runtime.text.tokenizer import Tokenizer

WEIGHTS = "model.safetensors"


@attrs.frozen(eq=False)
class LoadedModel:
    """A model with its config, tokenizer and adapter. `path` is the folder that it was loaded from (None: a new model).
    `packages` are those of its parts, see `package_of`; its folder names them."""

    architecture: str
    config: ArchitectureConfig
    model: Model
    tokenizer: Tokenizer
    path: Path | None = None
    adapter: Adapter | None = None
    packages: Mapping[str, Mapping[str, str]] = attrs.field(factory=dict)


def new_model(plugins: PluginManager, name: str, config: Any, tokenizer: Tokenizer, backend: Backend) -> LoadedModel:
    """A model with newly initialised weights on the CPU. Its vocabulary is as large as the tokenizer's."""
    config = attrs.evolve(config, vocab_size=tokenizer.vocab_size)
    packages = package_of(plugins, plugins.get(ArchitectureSpec, name))
    return LoadedModel(name, config, build_model(plugins, name, config, backend), tokenizer, packages=packages)


def build_model(plugins: PluginManager, name: str, config: ArchitectureConfig, backend: Backend) -> Model:
    """A model of an architecture, with the backend's kernels. Raises MMError for a part that does not keep the contract."""
    target = plugins.load(ArchitectureSpec, name)
    if inspect.isabstract(target):
        missing = ", ".join(sorted(target.__abstractmethods__))
        raise MMError(f"Architecture {name}: {target.__name__} does not implement {missing} of mm.contracts.Model.")
    model = target(config, backend.kernels())
    if not isinstance(model, Model):
        raise MMError(f"Architecture {name}: its model, a {type(model).__name__}, does not extend mm.contracts.Model.")
    return model


def save_model_folder(
    folder: Path, loaded: LoadedModel, weights: Mapping[str, torch.Tensor] | None = None, *, merged: bool = False
) -> None:
    """Write a model's files into an existing folder. `weights`, if given, are written instead of the model's present ones.

    An adapter is written beside the plain weights. With `merged` it is also merged into them, and config.json does not
    mention it: the model can then be loaded without it.
    """
    adapter = loaded.adapter
    with adapter.merged() if adapter and merged else nullcontext():
        tensors = named_tensors(loaded.model, by_name=True) if weights is None else weights
        own = adapter.names() if adapter else frozenset()
        save_weights({name: tensor for name, tensor in tensors.items() if name not in own}, folder / WEIGHTS)
    loaded.tokenizer.save(folder)
    config: dict[str, Any] = {
        "model_type": "mm",
        "architecture": loaded.architecture,
        "config": attrs.asdict(loaded.config),
        "tokenizer_fingerprint": loaded.tokenizer.fingerprint,
    }
    if loaded.packages:
        config["packages"] = dict(loaded.packages)
    if adapter:
        (folder / ADAPTER).mkdir()
        adapter.save(folder / ADAPTER, {name: tensors[name] for name in own})
        note = {"name": adapter.name, "config": attrs.asdict(adapter.config) if adapter.config else {}}
        config |= {} if merged else {"adapter": note}
    (folder / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")


def save_weights(weights: Mapping[str, torch.Tensor], path: Path) -> None:
    """Write tensors to a safetensors file. Equal weights give equal bytes.

    `safetensors.torch.save_model` would add the names of tied tensors, in another order each time. The library creates files
    that only their owner can read; this one keeps the usual permissions.
    """
    path.touch()
    mode = path.stat().st_mode
    try:
        save_file({name: weights[name].contiguous() for name in sorted(weights)}, path, metadata={"format": "pt"})
    except SafetensorError as error:
        raise native_error(error, path) from None
    path.chmod(mode)


def load_model_folder(
    plugins: PluginManager, folder: Path, backend: Backend, changes: Mapping[str, Any] | None = None, *, merge: bool = True
) -> LoadedModel:
    """Load a model from a folder of ours or, through the converter that reads it, from a foreign one; on the CPU, in float32.

    `changes` replace saved settings that are marked `on_load`; no tensor depends on these. An adapter in the folder is merged
    into the weights; with `merge=False` it is not read, and the caller applies it. Raises CheckpointError for damaged files,
    missing or unexpected tensors, values that are not finite, and a tokenizer that is not the model's; UsageError for changes
    that the model does not accept. Nothing is allocated for more parameters than the files hold.
    """
    described = describe(plugins, folder)
    check_memory(folder, described.config)
    if described.converter is not None:
        return _import_foreign(plugins, folder, described, backend, changes or {})
    _verify(folder)
    values, spec = described.values, described.architecture
    model_config = changed(spec, described.config, changes or {})
    tokenizer = Tokenizer.load(folder)
    if tokenizer.fingerprint != values.get("tokenizer_fingerprint"):
        raise CheckpointError(
            f"{folder}: the tokenizer there ({tokenizer.fingerprint}) is not the model's "
            f"({values.get('tokenizer_fingerprint')}). Restore the tokenizer with the latter fingerprint."
        )
    found = header(folder / WEIGHTS)
    check_size(folder, model_config, found)
    model = build_model(plugins, spec.name, model_config, backend)
    check_header(folder / WEIGHTS, model, found)
    try:
        load_model(model, folder / WEIGHTS, strict=True)
    except Exception as error:  # the library raises a bare one
        raise CheckpointError(f"{folder / WEIGHTS} does not fit its config.json: {error}") from None
    if merge and "adapter" in values:
        note = values["adapter"] if isinstance(values["adapter"], dict) else {}
        name = text_of(note, "name", folder / CONFIG)
        merge_adapter(plugins, model, name, folder / ADAPTER, note.get("config"), values.get("packages"))
    check_finite(folder, named_tensors(model))
    return LoadedModel(spec.name, model_config, model, tokenizer, folder, packages=package_of(plugins, spec))


def _verify(folder: Path) -> None:
    """Verify a folder of ours by its index. A model in a run always has one; elsewhere a missing one is reported."""
    if not (folder / INDEX).exists():
        if run := run_of(folder):
            raise CheckpointError(f"{folder / INDEX} is missing: the model cannot be verified. {cure(run)}")
        on_stderr(f"{folder}: not verified, it has no {INDEX}")
        return
    verify(folder, required=("config.json", WEIGHTS))


def merge_adapter(
    plugins: PluginManager, model: Model, name: str, saved: Path, config: Mapping[str, Any] | None = None, packages: Any = None
) -> None:
    """Put the change of a saved adapter into a plain model's weights. Raises CheckpointError for what does not fit, UsageError,
    which names its package (of the saved `packages`), if no plugin has it."""
    with naming_package(plugins, saved.parent, packages):
        spec, weights = plugins.get(AdapterSpec, name), model.state_dict(keep_vars=True)
    settings = saved_config(spec.config, config or {}, saved.parent / CONFIG) if spec.config else None
    adapter: Adapter = spec.load()(spec.name, settings, model)
    adapter.apply(saved)
    with adapter.merged():
        merged = {name: tensor.detach().clone() for name, tensor in model.state_dict().items() if name in weights}
    adapter.remove()
    model.load_state_dict(merged)


def _import_foreign(
    plugins: PluginManager, folder: Path, described: Described, backend: Backend, changes: Mapping[str, Any]
) -> LoadedModel:
    assert described.converter is not None
    model_config, state = described.converter.read(folder)
    architecture = described.architecture
    model_config = changed(architecture, model_config, changes)
    tokenizer = Tokenizer.load(folder)
    if tokenizer.vocab_size > model_config.vocab_size:
        raise CheckpointError(f"{folder}: {tokenizer.vocab_size} token ids, but an embedding of {model_config.vocab_size} rows.")
    check_finite(folder, state)
    model = build_model(plugins, architecture.name, model_config, backend)
    _fill(model, state, folder)
    packages = package_of(plugins, architecture)
    return LoadedModel(architecture.name, model_config, model, tokenizer, folder, packages=packages)


def _fill(model: nn.Module, state: dict[str, torch.Tensor], folder: Path) -> None:
    """Load a state dict that has each tied tensor once, under any of its names."""
    incompatible = model.load_state_dict(state, strict=False)
    own = model.state_dict(keep_vars=True)
    filled = {id(tensor) for name, tensor in own.items() if name in state}
    missing = [name for name in incompatible.missing_keys if id(own[name]) not in filled]
    if missing or incompatible.unexpected_keys:
        raise CheckpointError(f"{folder}: missing {missing[:4]}, unexpected {incompatible.unexpected_keys[:4]}.")


def freeze(model: Model, device: torch.device, dtype: torch.dtype | None = None) -> Model:
    """The model for inference: on the device, in `eval()`, without gradients."""
    return model.to(device=device, dtype=dtype).eval().requires_grad_(False)
