"""Which installed formats can hold a model, and writing it through the one that was chosen. Imports no torch."""

from __future__ import annotations

import shutil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from mm.core.errors import ConflictingParts, UsageError
from mm.core.plugins import PluginManager
from mm.core.records import ConverterSpec
from mm.runtime.models.config_files import read_config
from mm.runtime.models.converter import Converter, Unsupported
from mm.runtime.models.description import NATIVE
from mm.runtime.models.quantised import cost_of, with_weights
from mm.runtime.models.repacker import Packing, Repacker, check_read_back
from mm.runtime.models.storage import atomic_file, atomic_folder

if TYPE_CHECKING:
    from mm.runtime.models.folder import LoadedModel


def able_converters(plugins: PluginManager, loaded: LoadedModel) -> tuple[list[str], list[str]]:
    """The converters that can hold the model, and the messages about names that several plugins claim."""
    able, disputed = set[str](), set[str]()
    for _, spec in plugins.owned(ConverterSpec):
        try:
            able |= {spec.name} if spec.architecture and not _refusal(plugins, spec, loaded) else set()
        except ConflictingParts as error:
            disputed.add(f"({error})")
    return sorted(able), sorted(disputed)


def accepting(plugins: PluginManager, loaded: LoadedModel, name: str) -> Converter:
    """The converter of that name, once it accepts the model. Raises Unsupported naming those that do."""
    spec = plugins.get(ConverterSpec, name)
    if reason := _refusal(plugins, spec, loaded):
        raise _unsupported(plugins, loaded, name, reason)
    converter: Converter = plugins.load(ConverterSpec, name)()
    return converter


def adapter_packer(plugins: PluginManager, name: str) -> Repacker | None:
    """The repacker of that name if it packs adapters. Raises UsageError for an unknown name."""
    if name == NATIVE or plugins.get(ConverterSpec, name).architecture:
        return None
    repacker: Repacker = plugins.load(ConverterSpec, name)()
    return repacker if repacker.adapter_config else None


def pack_adapter(packer: Repacker, source: Path, out: Path, packing: Packing) -> Path:
    """Write a saved adapter alone into the folder `out`, and return that."""
    with atomic_folder(out, index=False) as folder:
        packer.pack(source, folder, packing)
    return out


def write_repacker(plugins: PluginManager, name: str, loaded: LoadedModel, out: Path, packing: Packing) -> None:
    """Write the model by a repacker: into the folder `out` or, if that has the repacker's suffix, as that file. If the
    repacker can read it, it is read back and compared. Raises Unsupported, before anything is written at `out`."""
    repacker: Repacker = plugins.load(ConverterSpec, name)()
    known = ", ".join(repacker.quantisations) or "none"
    if packing.quantise and packing.quantise not in repacker.quantisations:
        raise UsageError(f"--quantise {packing.quantise}: {name} does not write it. It writes: {known}.")
    if repacker.always_quantised and not packing.quantise:
        raise UsageError(f"--quantise is required: {name} holds quantised weights only. It writes: {known}.")
    if packing.max_shard_size and not repacker.shards:
        raise UsageError(f"--max-shard-size: {name} is not written in shards. Omit the option.")
    with TemporaryDirectory(prefix="mm-layout-") as temporary:
        layout = Path(temporary) / "layout"
        converter = _converter_for(plugins, name, repacker, loaded)
        converter.write(loaded, layout)
        try:
            if reason := repacker.refusal(read_config(layout)):
                raise Unsupported(reason)
            if not repacker.suffix or out.suffix.lower() != repacker.suffix:
                with atomic_folder(out, index=False) as folder:
                    _pack(repacker, converter, layout, folder, packing, loaded)
                return
            packed = Path(temporary) / "packed"
            packed.mkdir()
            file = _pack(repacker, converter, layout, packed, packing, loaded)
        except Unsupported as error:
            raise _unsupported(plugins, loaded, name, str(error)) from None
        if others := sorted(path.name for path in packed.iterdir() if path != file):
            packing.say(f"{out.name}: the file alone, without {', '.join(others)}; a folder as OUT has them too")
        with file.open("rb") as source, atomic_file(out) as target:
            shutil.copyfileobj(source, target)


def layout_values(plugins: PluginManager, name: str, loaded: LoadedModel) -> dict[str, Any]:
    """The config.json of the Hugging Face layout in which, or out of which, the format of that name is written."""
    spec = plugins.get(ConverterSpec, name)
    repacker = None if spec.architecture else plugins.load(ConverterSpec, name)()
    converter = _converter_for(plugins, name, repacker, loaded) if repacker else accepting(plugins, loaded, name)
    return dict(converter.write_config(loaded.config, loaded.tokenizer))


def dequantised_model(plugins: PluginManager, name: str, loaded: LoadedModel, path: Path) -> LoadedModel:
    """The model with the quantised weights that a repacker wrote to `path`, or its own if the repacker does not know them."""
    repacker: Repacker = plugins.load(ConverterSpec, name)()
    converter = _converter_for(plugins, name, repacker, loaded)
    with TemporaryDirectory(prefix="mm-layout-") as temporary:
        layout = Path(temporary) / "layout"
        converter.write(loaded, layout)
        tensors = repacker.dequantised(path, layout)
        return loaded if tensors is None else with_weights(loaded, converter, tensors)


def _pack(
    repacker: Repacker, converter: Converter, layout: Path, folder: Path, packing: Packing, loaded: LoadedModel
) -> Path:
    """Fill the folder, and read it back if the repacker can read; the cost of quantised weights is printed. Returns the
    repacker's file, or the folder."""
    repacker.pack(layout, folder, packing)
    path = next(iter(sorted(folder.glob(f"*{repacker.suffix}"))), folder) if repacker.suffix else folder
    if repacker.recognises(path) and not packing.quantise:
        check_read_back(repacker, converter, path, layout, same_weights=packing.dtype == "fp32")
        packing.say("read back bit for bit" if packing.dtype == "fp32" else "read back")
    if packing.quantise and (dequantised := repacker.dequantised(path, layout)) is not None:
        other = with_weights(loaded, converter, dequantised)
        packing.say(f"--quantise {packing.quantise}: {cost_of(loaded, other)}")
        if packing.compare:
            packing.compare(loaded, other)
    elif packing.compare:
        raise UsageError("--skills: the format does not say how its quantised weights are read. Omit the option.")
    return path


def _converter_for(plugins: PluginManager, name: str, repacker: Repacker, loaded: LoadedModel) -> Converter:
    """The converter through whose layout a repacker holds the model."""
    reasons = []
    for spec in plugins.specs(ConverterSpec):
        if spec.architecture and spec.writes in repacker.layouts:
            if not (reason := _refusal(plugins, spec, loaded)):
                converter: Converter = plugins.load(ConverterSpec, spec.name)()
                return converter
            reasons.append(f"as {spec.name} not, for {reason}")
    raise _unsupported(plugins, loaded, name, " ".join(reasons) or f"it holds {', '.join(repacker.layouts)}.")


def _refusal(plugins: PluginManager, spec: ConverterSpec, loaded: LoadedModel) -> str:
    """The reason why a converter cannot write this model, or "" if it can."""
    if spec.architecture != loaded.architecture:
        return f"it holds {spec.architecture} models and this one is {loaded.architecture}."
    if not spec.writes:
        return "it only reads."
    try:
        plugins.load(ConverterSpec, spec.name)().write_config(loaded.config, loaded.tokenizer)
    except Unsupported as error:
        return str(error)
    return ""


def _unsupported(plugins: PluginManager, loaded: LoadedModel, name: str, reason: str) -> Unsupported:
    able, disputed = able_converters(plugins, loaded)
    cure = f"Use --to {' or --to '.join(able)}." if able else "No other installed converter can hold it."
    return Unsupported(" ".join([f"{name} cannot hold this model: {reason} {cure}", *disputed]))
