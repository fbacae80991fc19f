"""The tensors of a folder in Hugging Face layout: safetensors, or a pickled state dict, read without running its code."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mm.core.errors import CheckpointError, UsageError
from mm.core.plugins import PluginManager
from mm.core.records import ConverterSpec
from mm.runtime.models.finding import convert_first
from mm.runtime.text.json_file import check_regular, read_object

if TYPE_CHECKING:
    from torch import Tensor

# in the order of preference; each is one file, or shards that `NAME.index.json` lists
WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
# how torch names a function that a file wants to be called
_CODE = re.compile(r"GLOBAL (\S+)")
# in the words of safetensors and torch
_CUT = ("file not fully covered", "header too small", "invalid header length", "PytorchStreamReader failed", "Ran out of input")


def reader(plugins: PluginManager, folder: Path, config: Mapping[str, Any]) -> ConverterSpec:
    """The converter that reads a foreign folder with this config.json. Raises UsageError if there is none."""
    names = config.get("architectures")
    if not names:
        raise UsageError(f"{folder / 'config.json'} has no 'architectures', the list with the name of the format.")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise CheckpointError(f"{folder / 'config.json'}: 'architectures' is not a list of names.")
    specs = [spec for _, spec in plugins.owned(ConverterSpec)]
    for spec in specs:
        if set(names) & set(spec.reads):
            if not spec.architecture:  # a repacker
                raise UsageError(f"{folder}: {convert_first(folder)}")
            return spec
    known = sorted({name for spec in specs for name in spec.reads})
    raise UsageError(
        f"{folder}: no converter reads {', '.join(names)[:200]}. Readable: {', '.join(known) or 'none'}. Another format takes a "
        "converter plugin: mm plugins new NAME --kind converter, docs/converters.md."
    )


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """All tensors of a model folder, on the CPU, in the type of the file.

    Raises UsageError if the folder has no weights, and CheckpointError for a damaged file or a shard whose tensors are not
    those that the index lists.
    """
    for name in WEIGHT_FILES:
        if (folder / name).is_file():
            return read_file(folder / name)
        if (folder / f"{name}.index.json").is_file():
            return _read_shards(folder / f"{name}.index.json")
    raise UsageError(f"{folder} holds no weights: neither {' nor '.join(WEIGHT_FILES)}, whole or in shards.")


def weight_files(folder: Path) -> list[Path]:
    """The files that hold the tensors; empty if there are none."""
    for name in WEIGHT_FILES:
        if (folder / name).is_file():
            return [folder / name]
        if (folder / f"{name}.index.json").is_file():
            files = sorted({folder / shard for shard in _weight_map(folder / f"{name}.index.json").values()})
            for path in files:
                _check(path)
            return files
    return []


def read_file(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, or of a pickled state dict without running its code. Raises CheckpointError."""
    from safetensors.torch import load_file

    return state_dict(path, _read(path, load_file) if path.suffix == ".safetensors" else read_pickle(path))


def read_pickle(path: Path) -> Any:
    """The content of a file of torch.save, on the CPU, without running its code. Raises CheckpointError."""
    import torch

    try:
        return _read(path, lambda file: torch.load(file, map_location="cpu", weights_only=True))
    except CheckpointError as error:
        if code := _CODE.search(str(error)):
            raise CheckpointError(f"{path} holds code ({code[1]}), which is never run: the file is not read.") from None
        if "copy it again" in str(error) or "is missing" in str(error):
            raise
        raise CheckpointError(f"{path}: torch.save has not written it, or it is damaged.") from error.__cause__


def _read(path: Path, load: Callable[[Path], Any]) -> Any:
    _check(path)
    try:
        return load(path)
    except Exception as error:  # both libraries raise various exceptions for damaged files
        raise _unreadable(path, error) from error


def state_dict(path: Path, found: Any) -> dict[str, Tensor]:
    """The found state dict. Raises CheckpointError if it is something else."""
    import torch

    if not isinstance(found, dict) or not all(isinstance(value, torch.Tensor) for value in found.values()):
        raise CheckpointError(f"{path}: expected a state dict that maps names to tensors.")
    return found


def headers(folder: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    """`header` of all safetensors files of a folder's weights together."""
    files = [path for path in weight_files(folder) if path.suffix == ".safetensors"]
    return {name: found for path in files for name, found in header(path).items()}


def header(path: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    """The type (F32, BF16, I64) and shape of every tensor in a safetensors file, without reading any. Raises CheckpointError if
    the file is missing or damaged, or shorter than its header says."""
    from safetensors import safe_open

    _check(path)
    try:
        with safe_open(path, framework="numpy") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            return {name: (found.get_dtype(), tuple(found.get_shape())) for name, found in slices.items()}
    except Exception as error:  # the library raises a bare one
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: Exception) -> CheckpointError:
    """The error for a file that its library cannot read; most of them were not copied to the end."""
    is_cut = any(words in str(error) for words in _CUT)
    return CheckpointError(f"{path}: {'the file is cut off or damaged: copy it again.' if is_cut else error}")


def _check(path: Path) -> None:
    try:
        check_regular(path)
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing.") from None
    except ValueError as error:
        raise CheckpointError(f"{path} {error}.") from None


def _read_shards(index: Path) -> dict[str, Tensor]:
    weight_map = _weight_map(index)
    merged: dict[str, Tensor] = {}
    for shard in sorted(set(weight_map.values())):
        tensors = read_file(index.parent / shard)
        listed = {name for name, file in weight_map.items() if file == shard}
        if wrong := sorted(listed ^ tensors.keys()):
            raise CheckpointError(f"{index.parent / shard} and {index.name} do not agree on tensor {wrong[0]}.")
        merged.update(tensors)
    return merged


def _weight_map(index: Path) -> dict[str, str]:
    try:
        weight_map = read_object(index)["weight_map"]
        # an index must not name files outside its folder
        wrong = [file for file in weight_map.values() if Path(file).name != file or file in ("", ".", "..")]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{index}: not a valid index of shards ({error!r}).") from None
    if wrong:
        raise CheckpointError(f"{index}: {wrong[0]!r} is not a file name.")
    return weight_map  # type: ignore[no-any-return]
