"""The facts about a model folder that can be had without reading its weights, and without importing torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs

from mm.core.configs import ArchitectureConfig
from mm.core.plugins import PluginManager
from mm.core.records import ArchitectureSpec, ConverterSpec
from mm.core.workspace import RunFolder, read_config, step_of
from mm.runtime.models.convert import NATIVE
from mm.runtime.models.hf_files import reader, weight_files
from mm.runtime.text.tokenizer import Tokenizer


def facts_of(plugins: PluginManager, folder: Path, context: int) -> dict[str, Any]:
    """The facts as JSON values. `flops_per_token` is that of training on documents of `context` tokens."""
    form, architecture, config = _config(plugins, folder)
    return {
        "path": str(folder),
        "format": form,
        "architecture": architecture,
        "parameters": config.num_parameters(),
        "active_parameters": config.num_active_parameters(),
        "flops_per_token": config.flops_per_token(context),
        "context": context,
        "weights": _weights(folder),
        "tokenizer": _tokenizer(folder),
        "origin": _origin(folder.resolve()),
        "config": attrs.asdict(config),
    }


def _config(plugins: PluginManager, folder: Path) -> tuple[str, str, ArchitectureConfig]:
    values = read_config(folder)
    if values.get("model_type") != "mm":
        spec = reader(plugins, folder, values)
        return spec.name, spec.architecture, plugins.load(ConverterSpec, spec.name)().read_config(values)
    fields = {name: tuple(value) if isinstance(value, list) else value for name, value in values["config"].items()}
    config_class = plugins.get(ArchitectureSpec, values["architecture"]).config
    assert config_class is not None
    return NATIVE, values["architecture"], config_class(**fields)


def _weights(folder: Path) -> dict[str, Any]:
    files = weight_files(folder)
    dtypes = {dtype for path in files if path.suffix == ".safetensors" for dtype in _dtypes(path)}
    sizes = {path.name: path.stat().st_size for path in files}
    return {"files": sizes, "bytes": sum(sizes.values()), "dtypes": sorted(dtypes)}


def _dtypes(path: Path) -> set[str]:
    from safetensors import safe_open

    with safe_open(path, framework="numpy") as file:
        return {file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118


def _tokenizer(folder: Path) -> dict[str, Any] | None:
    if not (folder / "tokenizer.json").is_file():
        return None
    tokenizer = Tokenizer.load(folder)
    return {"fingerprint": tokenizer.fingerprint, "vocab_size": tokenizer.vocab_size, "template": tokenizer.template_digest}


def _origin(folder: Path) -> dict[str, Any]:
    """Name, step, algorithm and state of the run that this folder lies in; empty outside of a run.

    The step of a checkpoint is read from its folder's name.
    """
    for parent in folder.parents[:2]:
        if manifest := RunFolder(parent).manifest:
            origin = {"run": parent.name, "step": step_of(folder) or manifest.get("step")}
            origin |= {name: manifest.get(name) for name in ("algorithm", "state")}
            return {name: value for name, value in origin.items() if value is not None}
    return {}
