"""Writing a model in another format. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from mm.core.errors import UsageError
from mm.core.plugins import PluginManager
from mm.core.records import ConverterSpec
from mm.core.say import Say, silent
from mm.core.workspace import Workspace
from mm.runtime.devices.dtypes import torch_dtype
from mm.runtime.hubs.fetching import downloads
from mm.runtime.hubs.models import is_remote, local_model
from mm.runtime.models.accepting import able_converters, accepting, adapter_packer, pack_adapter, write_repacker
from mm.runtime.models.config_files import CONFIG, read_config
from mm.runtime.models.description import NATIVE
from mm.runtime.models.finding import find_adapter, find_model, find_tokenizer
from mm.runtime.models.head_sizes import note_on_heads
from mm.runtime.models.repacker import Compare, Packing, Repacker, repacker_of, repackers, unpacked
from mm.runtime.models.shards import parse_size
from mm.runtime.models.storage import atomic_folder, seal
from mm.runtime.models.tensors import cast, compare, named_tensors
from mm.runtime.text.jinja import fault_of

if TYPE_CHECKING:
    import torch

    from mm.runtime.models.folder import LoadedModel


class Proof(Protocol):
    """Tries a written model in the program that it was written for."""

    def check(self, name: str, loaded: LoadedModel) -> None:
        """Raise UsageError, before anything is written, if the format of that name or the model cannot be tried."""

    def prove(self, name: str, loaded: LoadedModel, out: Path, packing: Packing) -> None:
        """Try the model that was written to `out`. Raises MMError naming the first difference."""


def convert(
    plugins: PluginManager, model: str, out: str | Path, to: str | None = None, dtype: str | None = None, *,
    changes: Mapping[str, Any] | None = None, adapter: str | None = None, tokenizer: str | None = None, quantise: str = "",
    max_shard_size: str = "", force: bool = False, workspace: Workspace | None = None, say: Say = silent,
    compare: Compare | None = None, proof: Proof | None = None,
) -> Path:  # fmt: skip
    """Write a model in another format. Returns the written folder, or file if `out` has a repacker's suffix. Runs on the CPU.

    `model` is a run's name, a model folder, ours or foreign, a hub's name, or what a repacker reads (for a repacker of
    adapters: a run or a saved adapter); for one without a tokenizer, `tokenizer` is a folder that has it. `to` is a converter
    or "native"; by default that of `out`'s suffix, "native" for a foreign model, otherwise the only converter that can hold the
    model. `dtype` is fp32, bf16 or fp16; by default the model's (float32). `quantise` is one of the repacker's.
    `max_shard_size`, such as 200MB, divides the weights of a Hugging Face layout into files. `changes` replace saved settings
    of the model (see `load_model_folder`). `adapter`, NAME:RUN or NAME:PATH, is a saved adapter to merge into the weights.
    `force` replaces an existing model folder. `say` prints the format that was chosen. `compare` gets the model and one with the
    quantised weights; `proof` tries what was written. Raises UsageError, before anything is written, for an impossible one.
    """
    place, target = workspace or Workspace.here(), Path(out).resolve()
    size = parse_size("--max-shard-size", max_shard_size)
    packing = Packing(dtype=dtype, quantise=quantise, max_shard_size=size, say=say, compare=compare)
    if to and (packer := adapter_packer(plugins, to)):
        _refuse_options(to, packing, {"adapter": adapter, "tokenizer": tokenizer, "verify": proof, **(changes or {})})
        _check_out(plugins, target, (source := find_adapter(model, place, plugins)).resolve(), force)
        return pack_adapter(packer, source, target, packing)
    with downloads(say=say):
        packed = repacker_of(plugins, path := local_model(plugins, model) if is_remote(model) else Path(model))
        source = path if packed else find_model(model, place, plugins)
    _check_out(plugins, target, source.resolve(), force)
    with unpacked(packed, source, find_tokenizer(tokenizer, plugins) if tokenizer else None, say) as folder:
        loaded = _load(plugins, folder, changes, adapter, place, say)
        if packed and packed[1].lacks_tokenizer and source.is_file():
            loaded = _with_tokenizer(loaded, packed[1], source, tokenizer, say)
        _note_template(loaded, say)
        name = to or _choose(plugins, loaded, read_config(folder), target, say)
        if proof:
            proof.check(name, loaded)
        _write(plugins, name, loaded, target, packing)
        if proof:
            proof.prove(name, loaded, target, packing)
    return target


def _write(plugins: PluginManager, name: str, loaded: LoadedModel, out: Path, packing: Packing) -> None:
    """Write a model in the format of that name."""
    if name != NATIVE and not plugins.get(ConverterSpec, name).architecture:
        write_repacker(plugins, name, loaded, out, packing)
        return
    if packing.quantise:
        raise UsageError(f"--quantise {packing.quantise}: {name} has no quantised weights. Choose a format that has, with --to.")
    dtype = torch_dtype(packing.dtype) if packing.dtype else None
    if name != NATIVE:
        accepting(plugins, loaded, name).write(loaded, out, dtype, packing.max_shard_size)
        if note := note_on_heads(read_config(out)):
            packing.say(note)
    elif packing.max_shard_size:
        raise UsageError(f"--max-shard-size: {name} is not written in shards. Omit the option.")
    else:
        _write_native(plugins, loaded, out, dtype)
    packing.say("read back bit for bit")


def _refuse_options(to: str, packing: Packing, others: Mapping[str, Any]) -> None:
    """Raise UsageError for options of models where an adapter alone is written."""
    given = {"dtype": packing.dtype, "quantise": packing.quantise, "max_shard_size": packing.max_shard_size, **others}
    if used := [name for name, value in given.items() if value]:
        raise UsageError(f"--{used[0].replace('_', '-')} has no effect with --to {to}, which copies a saved adapter. Omit it.")


def _load(
    plugins: PluginManager, folder: Path, changes: Mapping[str, Any] | None, adapter: str | None, workspace: Workspace, say: Say
) -> LoadedModel:
    from mm.runtime.devices.backend import Backend
    from mm.runtime.models.folder import load_model_folder

    loaded = load_model_folder(plugins, folder, Backend(), changes)
    if adapter is not None:
        _merge(plugins, loaded, adapter, workspace)
    return loaded


def _with_tokenizer(loaded: LoadedModel, packer: Repacker, source: Path, named: str | None, say: Say) -> LoadedModel:
    """The model of a format without a tokenizer, with the one that the user names or the likeliest near `source`."""
    from mm.runtime.models.tokenizer_probe import check_tokenizer, choose_tokenizer

    found = loaded if named else choose_tokenizer(loaded, packer.tokenizers(source), say)
    check_tokenizer(found, f"--tokenizer {named}" if named else f"The tokenizer near {source}", say)
    return found


def _note_template(loaded: LoadedModel, say: Say) -> None:
    if fault := fault_of(loaded.tokenizer.template):
        say(f"chat template: {fault}; it is copied as it is, and conversations need one (chat_template.jinja)")


def _merge(plugins: PluginManager, loaded: LoadedModel, adapter: str, workspace: Workspace) -> None:
    from mm.runtime.models.folder import merge_adapter

    part, _, saved = adapter.partition(":")
    if not saved:
        raise UsageError(f"--adapter {adapter}: expected NAME:RUN or NAME:PATH, as in {part}:my-run.")
    merge_adapter(plugins, loaded.model, part, find_adapter(saved, workspace, plugins))


def _choose(plugins: PluginManager, loaded: LoadedModel, config: Mapping[str, Any], out: Path, say: Say) -> str:
    suffix = out.suffix.lower()
    if of_suffix := next((spec.name for spec, found in repackers(plugins) if suffix and found.suffix == suffix), ""):
        say(f"--to {of_suffix}: as {out.name} ends")
        return of_suffix
    if config.get("model_type") != "mm":
        say(f"--to {NATIVE}: {', '.join(config.get('architectures') or ())} into our own layout")
        return NATIVE
    able, disputed = able_converters(plugins, loaded)
    if len(able) != 1 or disputed:
        reason = f"these can hold it: {', '.join(able)}" if able else "no installed converter can hold it"
        raise UsageError(f"--to is required: {' '.join([reason, *disputed])}; --to {NATIVE} copies it in our own layout.")
    say(f"--to {able[0]}: the only format that can hold this model")
    return able[0]


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


def _check_out(plugins: PluginManager, out: Path, source: Path, force: bool) -> None:
    packers = [packer for _, packer in repackers(plugins)]
    suffixes = {packer.suffix for packer in packers if packer.suffix}
    configs = {CONFIG, *(packer.adapter_config for packer in packers)}
    if out == source or out in source.parents:
        raise UsageError(f"{out} holds the model to be converted: choose another folder.")
    if out.is_file() and out.suffix.lower() not in suffixes:
        raise UsageError(f"{out} is a file: name a folder to write.")
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not force:
        what = "exists" if out.is_file() else "is not empty"
        raise UsageError(f"{out} {what}: choose another place, or pass --force to replace it.")
    if out.is_file() and not any(_is_of(packer, out) for packer in packers):
        raise UsageError(f"{out} is no file that mm writes, though it is called so: --force replaces only models.")
    if out.is_dir() and not any(path.name in configs or path.suffix in suffixes for path in out.iterdir()):
        raise UsageError(f"{out} is not empty and holds no model ({CONFIG}): --force replaces only models.")


def _is_of(packer: Repacker, path: Path) -> bool:
    """True if the file is one of the repacker's by its name and first bytes."""
    with path.open("rb") as file:
        return path.suffix.lower() == packer.suffix and file.read(len(packer.magic)) == packer.magic
