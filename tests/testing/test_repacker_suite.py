"""The checks of repackers: those that are installed pass, and a repacker that loses something is found."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import pytest
from safetensors.torch import load_file, save_file
from torch import Tensor

from mm.converters.compressed_tensors.repacker import CompressedTensors
from mm.converters.peft.repacker import Peft
from mm.core.errors import CheckpointError
from mm.core.plugins import PluginManager
from mm.core.records import ConverterSpec
from mm.core.say import Say
from mm.runtime.models.repacker import Packing, Repacker, values_of
from mm.testing import assert_passed, check_part


class Unscaled(CompressedTensors):
    def dequantised(self, path: Path, folder: Path) -> Mapping[str, Tensor]:
        return {name: tensor * 2 for name, tensor in super().dequantised(path, folder).items()}


class Forgetful(CompressedTensors):
    def dequantised(self, path: Path, folder: Path) -> Mapping[str, Tensor]:
        return {name: tensor for name, tensor in super().dequantised(path, folder).items() if name != "model.norm.weight"}


class Silent(CompressedTensors):
    def dequantised(self, path: Path, folder: Path) -> None:  # type: ignore[override]
        return None


class Halved(Peft):
    def pack(self, folder: Path, out: Path, packing: Packing) -> None:
        super().pack(folder, out, packing)
        path = out / "adapter_model.safetensors"
        save_file({name: tensor / 2 for name, tensor in load_file(path).items()}, path)


class Archive(Repacker):
    """Correct: a Llama folder as one zip file."""

    layouts: ClassVar[tuple[str, ...]] = ("LlamaForCausalLM",)
    suffix: ClassVar[str] = ".zip"

    def recognises(self, path: Path) -> bool:
        return path.suffix == ".zip" and path.is_file()

    def unpack(self, path: Path, folder: Path, tokenizer: Path | None, say: Say) -> None:
        shutil.unpack_archive(path, folder)

    def pack(self, folder: Path, out: Path, packing: Packing) -> None:
        shutil.make_archive(str(out / "model"), "zip", folder)


class Greedy(Archive):
    def recognises(self, path: Path) -> bool:
        return True


class Rounding(Archive):
    def pack(self, folder: Path, out: Path, packing: Packing) -> None:
        path = folder / "model.safetensors"
        save_file({name: tensor.bfloat16().float() for name, tensor in load_file(path).items()}, path)
        super().pack(folder, out, packing)


def found(target: type, plugins: PluginManager) -> dict[str, tuple[str, str]]:
    reads = ("tried",) if issubclass(target, Archive) else ()
    spec = ConverterSpec(name="tried", summary="Tried.", target=f"{__name__}:{target.__name__}", reads=reads, writes="tried")
    return {check.name: (str(check.state), check.detail) for check in check_part(spec, plugins=plugins)}


@pytest.mark.parametrize("name", ["onnx", "compressed-tensors", "peft"])
def test_those_that_are_installed_pass(name: str, installed: PluginManager) -> None:
    assert_passed(check_part(installed.get(ConverterSpec, name), plugins=installed))


@pytest.mark.parametrize(
    ("target", "check", "status", "told"),
    [
        (Unscaled, "dequantises", "failed", "differs from the original by 100% of its norm"),
        (Forgetful, "dequantises", "failed", "model.norm.weight is missing"),
        (Silent, "dequantises", "skipped", "does not say what w8a8 makes of the weights"),
        (Archive, "reads back", "ok", "LlamaForCausalLM"),
        (Greedy, "recognises", "failed", "it says that it reads a text file"),
        (Rounding, "reads back", "failed", "it changes model.safetensors of the folder that it packs"),
        (Halved, "packs adapters", "failed", "did not come back as it was written"),
    ],
)
def test_a_mistake_is_found(target: type, check: str, status: str, told: str, installed: PluginManager) -> None:
    state, detail = found(target, installed)[check]
    assert state == status and told in detail, (state, detail)


def test_what_a_library_raises_for_a_file_names_the_file_and_the_format(tmp_path: Path) -> None:
    (tmp_path / "x.zip").write_text("no archive")
    with pytest.raises(CheckpointError, match=r"x\.zip: archive cannot read it \(ReadError"):
        values_of(tmp_path / "x.zip", "archive", Archive())
