"""The facts about a model folder that can be had without reading its weights, and without importing torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs

from mm.core.plugins import PluginManager
from mm.core.say import command_line
from mm.core.workspace import RunFolder, step_of
from mm.plugins.commands.info.problems import problems_of
from mm.runtime.models.description import Described, describe, describe_values, tokenizer_facts
from mm.runtime.models.finding import convert_first
from mm.runtime.models.hf_files import header, weight_files
from mm.runtime.models.repacker import Contents, Repacker, values_of


def facts_of(plugins: PluginManager, folder: Path, context: int) -> dict[str, Any]:
    """The facts as JSON values. `flops_per_token` is that of training on documents of `context` tokens."""
    described = describe(plugins, folder)
    return {
        **_of_config(folder, described, context),
        "weights": _weights(folder),
        "tokenizer": tokenizer_facts(folder),
        "origin": _origin(folder.resolve()),
        "config": _values_of(described),
        "problems": problems_of(folder, described),
        "not_read": "the values of the weights (NaN, infinite values" + _constants(described) + ")",
    }


def facts_of_file(plugins: PluginManager, path: Path, format_name: str, repacker: Repacker, context: int) -> dict[str, Any]:
    """The same of what a repacker reads, whose weights are read for it."""
    described = describe_values(plugins, path, values_of(path, format_name, repacker))
    described = attrs.evolve(described, format=f"{format_name}, as {described.format}")
    size = {path.name: path.stat().st_size} if path.is_file() else {}
    return {
        **_of_config(path, described, context),
        "weights": {"files": size, "bytes": sum(size.values()), "dtypes": [described.values.get("torch_dtype", "unknown type")]},
        "tokenizer": tokenizer_facts(path),
        "origin": {},
        "config": _values_of(described),
        "problems": [f"only mm convert reads it: {convert_first(path)}"],
        "not_read": "its tokenizer, which mm convert finds" + (" or takes by --tokenizer" if repacker.lacks_tokenizer else ""),
    }


def facts_of_contents(path: Path, format_name: str, repacker: Repacker, found: Contents) -> dict[str, Any]:
    """The same of a format that only writes; `command` is the line that writes such a file or folder, or "" for one of a type
    that mm does not write."""
    options = [*(("--dtype", found.dtype) if found.dtype else ()), *(("--quantise", found.quantise) if found.quantise else ())]
    written = not found.quantise or found.quantise in repacker.quantisations
    command = command_line("convert", "MODEL", str(path), "--to", format_name, *options) if written else ""
    return {
        "path": str(path),
        "format": format_name,
        "architecture": found.kind,
        "parameters": found.parameters,
        "weights": {"files": dict(found.files), "bytes": sum(found.files.values()), "dtypes": dict(found.types)},
        "quantisation": found.quantise,
        "context_length": found.context,
        "tokenizer": None if found.tokenizer is None else dict(found.tokenizer),
        "config": dict(found.sizes),
        "command": command,
        "problems": [f"mm writes {format_name} and does not read it: keep the model that it was made from"],
    }


def _of_config(path: Path, described: Described, context: int) -> dict[str, Any]:
    config = described.config
    return {
        "path": str(path),
        "format": described.format,
        "architecture": described.architecture.name,
        "parameters": config.num_parameters(),
        "active_parameters": config.num_active_parameters(),
        "flops_per_token": config.flops_per_token(context),
        "context": context,
    }


def _values_of(described: Described) -> dict[str, Any]:
    idle = described.config.idle_fields
    return attrs.asdict(described.config, filter=lambda field, value: field.name not in idle)


def _constants(described: Described) -> str:
    """The tensors that must have one value everywhere, for the list of what was not read."""
    constants = described.converter.rules(described.config).constants if described.converter else ()
    return "".join(f", {constant.theirs.format(layer=0)} not {constant.value:g}" for constant in constants)


def _weights(folder: Path) -> dict[str, Any]:
    files = weight_files(folder)
    dtypes = {dtype for path in files if path.suffix == ".safetensors" for dtype, _ in header(path).values()}
    sizes = {path.name: path.stat().st_size for path in files}
    return {"files": sizes, "bytes": sum(sizes.values()), "dtypes": sorted(dtypes)}


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
