"""The facts about a model folder that can be had without reading its weights, and without importing torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs

from mm.core.plugins import PluginManager
from mm.core.workspace import RunFolder, step_of
from mm.plugins.commands.info.problems import problems_of
from mm.runtime.models.description import Described, describe
from mm.runtime.models.hf_files import header, weight_files
from mm.runtime.text.tokenizer import Tokenizer


def facts_of(plugins: PluginManager, folder: Path, context: int) -> dict[str, Any]:
    """The facts as JSON values. `flops_per_token` is that of training on documents of `context` tokens."""
    described = describe(plugins, folder)
    config = described.config
    return {
        "path": str(folder),
        "format": described.format,
        "architecture": described.architecture.name,
        "parameters": config.num_parameters(),
        "active_parameters": config.num_active_parameters(),
        "flops_per_token": config.flops_per_token(context),
        "context": context,
        "weights": _weights(folder),
        "tokenizer": _tokenizer(folder),
        "origin": _origin(folder.resolve()),
        "config": attrs.asdict(config, filter=lambda field, value: field.name not in config.idle_fields),
        "problems": problems_of(folder, described),
        "not_read": "the values of the weights (NaN, infinite values" + _constants(described) + ")",
    }


def _constants(described: Described) -> str:
    """The tensors that must have one value everywhere, for the list of what was not read."""
    constants = described.converter.rules(described.config).constants if described.converter else ()
    return "".join(f", {constant.theirs.format(layer=0)} not {constant.value:g}" for constant in constants)


def _weights(folder: Path) -> dict[str, Any]:
    files = weight_files(folder)
    dtypes = {dtype for path in files if path.suffix == ".safetensors" for dtype, _ in header(path).values()}
    sizes = {path.name: path.stat().st_size for path in files}
    return {"files": sizes, "bytes": sum(sizes.values()), "dtypes": sorted(dtypes)}


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
