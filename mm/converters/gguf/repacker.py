"""A folder in a Hugging Face layout as one GGUF file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from mm.converters.gguf.contents import contents_of_file
from mm.converters.gguf.layouts import LAYOUTS
from mm.converters.gguf.settings import refusal_of, write_settings
from mm.converters.gguf.tokens import write_tokenizer
from mm.converters.gguf.types import QUANTISATIONS, plain_type, write_tensors
from mm.core.errors import UsageError
from mm.plugins.extras import install_command
from mm.runtime.devices.dtypes import DTYPES
from mm.runtime.models.config_files import read_config
from mm.runtime.models.hf_files import read_tensors
from mm.runtime.models.repacker import Contents, Packing, Repacker
from mm.runtime.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from torch import Tensor


# that of a folder for Ollama, which has a GGUF file too
MODELFILE = "Modelfile"


class Gguf(Repacker):
    """GGUF files of llama.cpp."""

    layouts: ClassVar[tuple[str, ...]] = tuple(LAYOUTS)
    suffix: ClassVar[str] = ".gguf"
    magic: ClassVar[bytes] = b"GGUF"
    quantisations: ClassVar[tuple[str, ...]] = QUANTISATIONS

    def refusal(self, values: Mapping[str, Any]) -> str:
        """See `Repacker`."""
        return refusal_of(values)

    def contents(self, path: Path) -> Contents | None:
        """See `Repacker`: of a file, or of a folder with one and without a Modelfile, which is Ollama's."""
        file = gguf_in(path)
        return contents_of_file(file) if file and (file == path or not (path / MODELFILE).exists()) else None

    def pack(self, folder: Path, out: Path, packing: Packing) -> None:
        """See `Repacker`. Matrices are in the type of `--dtype`, by default the model's. With `--quantise` they are quantised,
        and those that cannot be are in the type of `--dtype`, by default fp16."""
        try:
            from gguf import GGML_QUANT_VERSION, GGUFWriter, LlamaFileType
        except ImportError:
            raise UsageError(f"--to gguf needs the package gguf: {install_command('gguf')}") from None
        values = read_config(folder)
        layout = LAYOUTS[values["architectures"][0]]
        dtype = packing.dtype or ("fp16" if packing.quantise else _name_of(values["torch_dtype"]))
        kind = packing.quantise or plain_type(dtype)
        writer = GGUFWriter(out / f"model-{kind}{self.suffix}", layout.architecture)
        try:
            write_settings(writer, values)
            write_tokenizer(writer, Tokenizer.load(folder), values["vocab_size"], packing.say)
            writer.add_file_type(LlamaFileType[f"{'ALL' if kind == 'f32' else 'MOSTLY'}_{kind.upper()}"])
            if packing.quantise:
                writer.add_quantization_version(GGML_QUANT_VERSION)
            write_tensors(writer, layout.tensors(values, read_tensors(folder)), dtype, packing.quantise, packing.say)
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
        finally:
            writer.close()

    def dequantised(self, path: Path, folder: Path) -> Mapping[str, Tensor]:
        """See `Repacker`. Tensors of the file that follow from others are left out."""
        import torch
        from gguf import GGUFReader
        from gguf.quants import dequantize

        values = read_config(folder)
        derived = {"rope_freqs.weight", *(["output.weight"] if values["tie_word_embeddings"] else [])}
        stored = [tensor for tensor in GGUFReader(path).tensors if tensor.name not in derived]
        found = {each.name: torch.from_numpy(dequantize(each.data, each.tensor_type).copy()).float() for each in stored}
        return LAYOUTS[values["architectures"][0]].rules(values).to_theirs(found)


def gguf_in(path: Path) -> Path | None:
    """The GGUF file that the path is, or the only one in the folder; None for anything else."""
    files = [path] if path.is_file() else sorted(path.glob(f"*{Gguf.suffix}"))
    if len(files) != 1:
        return None
    with files[0].open("rb") as file:
        return files[0] if file.read(len(Gguf.magic)) == Gguf.magic else None


def _name_of(torch_name: str) -> str:
    """The name in `--dtype` of torch's name of a type; fp32 for one that GGUF does not have."""
    return next((name for name, known in DTYPES.items() if known == torch_name), "fp32")
