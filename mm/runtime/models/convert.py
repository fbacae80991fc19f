"""Writing a model in another format. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mm.core.errors import UsageError
from mm.core.plugins import PluginManager
from mm.core.records import ConverterSpec
from mm.core.say import Say, silent
from mm.core.storage import whole_folder
from mm.core.workspace import Workspace, find_adapter, find_model, read_config
from mm.runtime.devices.dtypes import DTYPES, torch_dtype
from mm.runtime.models.converter import Converter, Unsupported, refusal
from mm.runtime.models.tensors import cast, compare, named_tensors

if TYPE_CHECKING:
    import torch

    from mm.runtime.models.folder import LoadedModel

NATIVE = "native"


def convert(
    plugins: PluginManager,
    model: str,
    out: str | Path,
    to: str | None = None,
    dtype: str | None = None,
    *,
    changes: Mapping[str, Any] | None = None,
    adapter: str | None = None,
    force: bool = False,
    workspace: Workspace | None = None,
    say: Say = silent,
) -> Path:
    """Write a model, a run's or a folder's, ours or foreign, in another format; answers the folder. Needs no chip.

    `to` is a converter or "native"; without it, "native" for a foreign folder, else the only converter that can hold the
    model. `dtype` is fp32, bf16 or fp16; the model's (float32) by default. `changes` are settings of the model with other
    values than the saved ones (see `load_model_folder`). `adapter`, NAME:RUN or NAME:PATH, is a saved one that is merged
    into the weights. `force` replaces a model folder. `say` is told what was chosen. Raises UsageError, before anything is
    written, for what cannot be done.
    """
    from mm.runtime.devices.backend import Backend
    from mm.runtime.models.folder import load_model_folder

    if dtype is not None and dtype not in DTYPES:
        raise UsageError(f"--dtype {dtype}: expected {', '.join(DTYPES)}.")
    source = find_model(str(model), workspace or Workspace.here())
    folder = Path(out).resolve()
    _check_out(folder, source.resolve(), force)
    loaded = load_model_folder(plugins, source, Backend(), changes)
    if adapter is not None:
        _merge(plugins, loaded, adapter, workspace or Workspace.here())
    name = to or _choose(plugins, loaded, read_config(source), say)
    wanted = torch_dtype(dtype) if dtype else None
    if name == NATIVE:
        _write_native(plugins, loaded, folder, wanted)
    else:
        _accepting(plugins, loaded, name).write(loaded, folder, wanted)
    return folder


def _merge(plugins: PluginManager, loaded: LoadedModel, adapter: str, workspace: Workspace) -> None:
    from mm.runtime.models.folder import merge_adapter

    part, _, saved = adapter.partition(":")
    if not saved:
        raise UsageError(f"--adapter {adapter}: expected NAME:RUN or NAME:PATH, as in {part}:my-run.")
    merge_adapter(plugins, loaded.model, part, find_adapter(saved, workspace))


def _choose(plugins: PluginManager, loaded: LoadedModel, config: Mapping[str, Any], say: Say) -> str:
    if config.get("model_type") != "mm":
        say(f"--to {NATIVE}: {', '.join(config.get('architectures') or ())} into our own layout")
        return NATIVE
    able = _able(plugins, loaded)
    if len(able) != 1:
        found = f"these can hold it: {', '.join(able)}" if able else "no installed converter can hold it"
        raise UsageError(f"--to is needed: {found}; --to {NATIVE} copies it in our own layout.")
    say(f"--to {able[0]}: the only format that can hold this model")
    return able[0]


def _able(plugins: PluginManager, loaded: LoadedModel) -> list[str]:
    return [spec.name for spec in plugins.specs(ConverterSpec) if not refusal(plugins, spec, loaded)]


def _accepting(plugins: PluginManager, loaded: LoadedModel, name: str) -> Converter:
    """The converter of that name, once it accepts the model. Raises Unsupported naming those that do."""
    spec = plugins.get(ConverterSpec, name)
    if reason := refusal(plugins, spec, loaded):
        able = _able(plugins, loaded)
        cure = f"Use --to {' or --to '.join(able)}." if able else "No installed converter can hold it."
        raise Unsupported(f"{name} cannot hold this model: {reason} {cure}")
    converter: Converter = plugins.load(ConverterSpec, name)()
    return converter


def _write_native(plugins: PluginManager, loaded: LoadedModel, folder: Path, dtype: torch.dtype | None) -> None:
    from mm.runtime.devices.backend import Backend
    from mm.runtime.models.folder import load_model_folder, save_model_folder

    if dtype:
        cast(named_tensors(loaded.model), dtype)  # refuses what the type cannot hold
        loaded.model.to(dtype=dtype)
    with whole_folder(folder) as path:
        save_model_folder(path, loaded)
        back = load_model_folder(plugins, path, Backend())
        compare(named_tensors(loaded.model.float()), named_tensors(back.model))


def _check_out(out: Path, source: Path, force: bool) -> None:
    if out == source or out in source.parents:
        raise UsageError(f"{out} holds the model that is to be converted: choose another folder.")
    if out.is_file():
        raise UsageError(f"{out} is a file: a folder is written.")
    if not out.is_dir() or not any(out.iterdir()):
        return
    if not force:
        raise UsageError(f"{out} is not empty: choose another folder, or pass --force to replace it.")
    if not (out / "config.json").exists():
        raise UsageError(f"{out} is not empty and is no model folder (no config.json): --force replaces only those.")
