"""Writing a model in another format. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mm.core.errors import ConflictingParts, UsageError
from mm.core.plugins import PluginManager
from mm.core.records import ConverterSpec
from mm.core.say import Say, silent
from mm.core.workspace import Workspace
from mm.runtime.devices.dtypes import DTYPES, torch_dtype
from mm.runtime.models.config_files import read_config
from mm.runtime.models.converter import Converter, Unsupported, refusal
from mm.runtime.models.description import NATIVE
from mm.runtime.models.finding import find_adapter, find_model
from mm.runtime.models.storage import atomic_folder, seal
from mm.runtime.models.tensors import cast, compare, named_tensors
from mm.runtime.text.jinja import fault_of

if TYPE_CHECKING:
    import torch

    from mm.runtime.models.folder import LoadedModel


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
    """Write a model in another format. Returns the written folder. Runs on the CPU.

    `model` is a run's name or a model folder, ours or foreign. `to` is a converter or "native"; by default "native" for a
    foreign folder, otherwise the only converter that can hold the model. `dtype` is fp32, bf16 or fp16; by default the
    model's (float32). `changes` replace saved settings of the model (see `load_model_folder`). `adapter`, NAME:RUN or
    NAME:PATH, is a saved adapter to merge into the weights. `force` replaces an existing model folder. `say` prints the
    format that was chosen. Raises UsageError, before anything is written, for a conversion that is not possible.
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
    _note_template(loaded, say)
    name = to or _choose(plugins, loaded, read_config(source), say)
    new_dtype = torch_dtype(dtype) if dtype else None
    if name == NATIVE:
        _write_native(plugins, loaded, folder, new_dtype)
    else:
        _accepting(plugins, loaded, name).write(loaded, folder, new_dtype)
    return folder


def _note_template(loaded: LoadedModel, say: Say) -> None:
    if fault := fault_of(loaded.tokenizer.template):
        say(f"chat template: {fault}; it is copied as it is, and conversations need one (chat_template.jinja)")


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
    able, disputed = _able(plugins, loaded)
    if len(able) != 1 or disputed:
        reason = f"these can hold it: {', '.join(able)}" if able else "no installed converter can hold it"
        raise UsageError(f"--to is required: {' '.join([reason, *disputed])}; --to {NATIVE} copies it in our own layout.")
    say(f"--to {able[0]}: the only format that can hold this model")
    return able[0]


def _able(plugins: PluginManager, loaded: LoadedModel) -> tuple[list[str], list[str]]:
    """The converters that can hold the model, and the messages about names that several plugins claim."""
    able, disputed = set[str](), set[str]()
    for _, spec in plugins.owned(ConverterSpec):
        try:
            able |= set() if refusal(plugins, spec, loaded) else {spec.name}
        except ConflictingParts as error:
            disputed.add(f"({error})")
    return sorted(able), sorted(disputed)


def _accepting(plugins: PluginManager, loaded: LoadedModel, name: str) -> Converter:
    """The converter of that name, once it accepts the model. Raises Unsupported naming those that do."""
    spec = plugins.get(ConverterSpec, name)
    if reason := refusal(plugins, spec, loaded):
        able, disputed = _able(plugins, loaded)
        cure = f"Use --to {' or --to '.join(able)}." if able else "No other installed converter can hold it."
        raise Unsupported(" ".join([f"{name} cannot hold this model: {reason} {cure}", *disputed]))
    converter: Converter = plugins.load(ConverterSpec, name)()
    return converter


def _write_native(plugins: PluginManager, loaded: LoadedModel, folder: Path, dtype: torch.dtype | None) -> None:
    from mm.runtime.devices.backend import Backend
    from mm.runtime.models.folder import load_model_folder, save_model_folder

    if dtype:
        cast(named_tensors(loaded.model), dtype)  # raises UsageError for a value out of the type's range
        loaded.model.to(dtype=dtype)
    with atomic_folder(folder, index=False) as path:
        save_model_folder(path, loaded)
        seal(path)
        back = load_model_folder(plugins, path, Backend())
        compare(named_tensors(loaded.model.float()), named_tensors(back.model))


def _check_out(out: Path, source: Path, force: bool) -> None:
    if out == source or out in source.parents:
        raise UsageError(f"{out} holds the model to be converted: choose another folder.")
    if out.is_file():
        raise UsageError(f"{out} is a file: name a folder to write.")
    if not out.is_dir() or not any(out.iterdir()):
        return
    if not force:
        raise UsageError(f"{out} is not empty: choose another folder, or pass --force to replace it.")
    if not (out / "config.json").exists():
        raise UsageError(f"{out} is not empty and is not a model folder (no config.json): --force replaces only model folders.")
