"""Converters: a strict table of tensors and two readings of a config; reading and writing folders follow from them.

Importing this module imports no torch.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mm.core.errors import CheckpointError, UsageError
from mm.core.plugins import PluginManager
from mm.core.records import ConverterSpec
from mm.core.training.conversion_rules import Rules
from mm.core.training.foreign_files import read_tensors
from mm.core.training.storage import whole_folder
from mm.core.training.tensors import cast, compare, named_tensors
from mm.core.workspace import Workspace, find_adapter, find_model, read_config

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from mm.core.data.tokenizer import Tokenizer
    from mm.core.training.models import LoadedModel

__all__ = ["DTYPES", "NATIVE", "Converter", "Unsupported", "compare", "convert", "named_tensors", "reader"]

NATIVE = "native"
DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


class Unsupported(UsageError):
    """A format cannot hold a model, or a model of that format cannot be held by ours; the message is the reason."""


class Converter(ABC):
    """A checkpoint format of one architecture: one table and one config, each read in both directions."""

    @abstractmethod
    def rules(self, config: Any) -> Rules:
        """The table for a model of this config."""

    @abstractmethod
    def read_config(self, hf: Mapping[str, Any]) -> Any:
        """The architecture's config from a config.json. Raises Unsupported for what ours cannot hold."""

    @abstractmethod
    def write_config(self, config: Any, tokenizer: Tokenizer) -> dict[str, Any]:
        """config.json, but for the type of the weights. Raises Unsupported for what the format cannot hold."""

    def read(self, folder: Path) -> tuple[Any, dict[str, Tensor]]:
        """(config, state dict in our names and the file's types) of a foreign folder; tied copies are left out.

        Raises Unsupported, or CheckpointError naming the tensor that is missing, unexpected, misshapen or damaged.
        """
        try:
            config = self.read_config(read_config(folder))
        except (Unsupported, ValueError) as error:
            raise Unsupported(f"{folder / 'config.json'}: {error}") from None
        try:
            return config, self.rules(config).to_ours(read_tensors(folder))
        except CheckpointError as error:
            raise CheckpointError(f"{folder}: {error}") from None

    def write(self, loaded: LoadedModel, folder: Path, dtype: torch.dtype | None = None) -> None:
        """Write a whole foreign folder, its weights in `dtype` (the model's by default), and read it back.

        The folder takes its name only when every tensor came back bit for bit. Raises Unsupported before writing.
        """
        from mm.core.training.models import WEIGHTS, save_weights

        config = self.write_config(loaded.config, loaded.tokenizer)
        own = named_tensors(loaded.model)
        dtype = dtype or next(iter(own.values())).dtype
        state = cast(self.rules(loaded.config).to_theirs(own), dtype)
        config["torch_dtype"] = str(dtype).removeprefix("torch.")
        with whole_folder(folder, index=False) as path:
            save_weights(state, path / WEIGHTS)
            _write_json(path / "config.json", config)
            _write_json(path / "generation_config.json", generation_config(loaded.tokenizer))
            loaded.tokenizer.save(path)
            self._check(path, loaded, state)

    def _check(self, folder: Path, loaded: LoadedModel, state: dict[str, Tensor]) -> None:
        config, back = self.read(folder)
        if self.write_config(config, loaded.tokenizer) != self.write_config(loaded.config, loaded.tokenizer):
            raise CheckpointError("The config that was written does not read back as the model's; nothing was kept.")
        own = named_tensors(loaded.model)
        # where the type is kept, what comes back must be the model itself and not only what was written
        kept = {tensor.dtype for tensor in own.values()} == {tensor.dtype for tensor in state.values()}
        compare({n: t.cpu() for n, t in own.items()} if kept else self.rules(loaded.config).to_ours(state), back)


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
    say: Callable[[str], None] = lambda line: None,
) -> Path:
    """Write a model, a run's or a folder's, ours or foreign, in another format; answers the folder. Needs no chip.

    `to` is a converter or "native"; without it, "native" for a foreign folder, else the only converter that can hold the
    model. `dtype` is fp32, bf16 or fp16; the model's (float32) by default. `changes` are settings of the model with other
    values than the saved ones (see `load_model_folder`). `adapter`, NAME:RUN or NAME:PATH, is a saved one that is merged
    into the weights. `force` replaces a model folder. `say` is told what was chosen. Raises UsageError, before anything is
    written, for what cannot be done.
    """
    from mm.core.backend import Backend
    from mm.core.training.models import load_model_folder

    if dtype is not None and dtype not in DTYPES:
        raise UsageError(f"--dtype {dtype}: expected {', '.join(DTYPES)}.")
    source = find_model(str(model), workspace or Workspace.here())
    folder = Path(out).resolve()
    _check_out(folder, source.resolve(), force)
    loaded = load_model_folder(plugins, source, Backend(), changes)
    if adapter is not None:
        _merge(plugins, loaded, adapter, workspace or Workspace.here())
    name = to or _choose(plugins, loaded, read_config(source), say)
    if name == NATIVE:
        _write_native(plugins, loaded, folder, _torch_dtype(dtype))
    else:
        _accepting(plugins, loaded, name).write(loaded, folder, _torch_dtype(dtype))
    return folder


def _merge(plugins: PluginManager, loaded: LoadedModel, adapter: str, workspace: Workspace) -> None:
    from mm.core.training.models import merge_adapter

    part, _, saved = adapter.partition(":")
    if not saved:
        raise UsageError(f"--adapter {adapter}: expected NAME:RUN or NAME:PATH, as in {part}:my-run.")
    merge_adapter(plugins, loaded.model, part, find_adapter(saved, workspace))


def reader(plugins: PluginManager, folder: Path, config: Mapping[str, Any]) -> ConverterSpec:
    """The converter that reads a foreign folder with this config.json. Raises UsageError when there is none."""
    names = config.get("architectures") or [config.get("model_type", "?")]
    specs = [spec for spec in plugins.specs("converter") if isinstance(spec, ConverterSpec)]
    for spec in specs:
        if set(names) & set(spec.reads):
            return spec
    known = sorted({name for spec in specs for name in spec.reads})
    raise UsageError(f"{folder}: no converter reads {', '.join(names)}. Readable: {', '.join(known) or 'none'}.")


def refusal(plugins: PluginManager, spec: ConverterSpec, loaded: LoadedModel) -> str:
    """Why a converter cannot write this model; empty when it can."""
    if spec.architecture != loaded.architecture:
        return f"it holds {spec.architecture} models and this one is {loaded.architecture}."
    if not spec.writes:
        return "it only reads."
    try:
        plugins.load("converter", spec.name)().write_config(loaded.config, loaded.tokenizer)
    except Unsupported as error:
        return str(error)
    return ""


def generation_config(tokenizer: Tokenizer) -> dict[str, int]:
    """generation_config.json: without the end token's id there, engines generate for ever."""
    ids = {"bos_token_id": tokenizer.bos_id, "eos_token_id": tokenizer.eos_id, "pad_token_id": tokenizer.pad_id}
    return {name: index for name, index in ids.items() if index is not None}


def _choose(plugins: PluginManager, loaded: LoadedModel, config: Mapping[str, Any], say: Callable[[str], None]) -> str:
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
    specs = [spec for spec in plugins.specs("converter") if isinstance(spec, ConverterSpec)]
    return [spec.name for spec in specs if not refusal(plugins, spec, loaded)]


def _accepting(plugins: PluginManager, loaded: LoadedModel, name: str) -> Converter:
    """The converter of that name, once it accepts the model. Raises Unsupported naming those that do."""
    spec = plugins.get("converter", name)
    assert isinstance(spec, ConverterSpec)
    if reason := refusal(plugins, spec, loaded):
        able = _able(plugins, loaded)
        cure = f"Use --to {' or --to '.join(able)}." if able else "No installed converter can hold it."
        raise Unsupported(f"{name} cannot hold this model: {reason} {cure}")
    converter: Converter = plugins.load("converter", name)()
    return converter


def _write_native(plugins: PluginManager, loaded: LoadedModel, folder: Path, dtype: torch.dtype | None) -> None:
    from mm.core.backend import Backend
    from mm.core.training.models import load_model_folder, save_model_folder

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


def _torch_dtype(name: str | None) -> torch.dtype | None:
    import torch

    found: torch.dtype | None = getattr(torch, DTYPES[name]) if name else None
    return found


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
