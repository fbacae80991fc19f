"""A folder in a Hugging Face layout as a folder for Ollama."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from mm.converters.gguf.contents import contents_of_file
from mm.converters.gguf.repacker import MODELFILE, Gguf, gguf_in
from mm.converters.ollama.templates import go_template
from mm.runtime.generation.options import GenerationOptions
from mm.runtime.models.config_files import read_config
from mm.runtime.models.repacker import Contents, Packing, Repacker
from mm.runtime.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from torch import Tensor


class Ollama(Repacker):
    """A GGUF file and the Modelfile that `ollama create NAME` reads."""

    layouts: ClassVar[tuple[str, ...]] = Gguf.layouts
    quantisations: ClassVar[tuple[str, ...]] = Gguf.quantisations

    def refusal(self, values: Mapping[str, Any]) -> str:
        """See `Repacker`: what llama.cpp cannot compute, Ollama cannot either."""
        return Gguf().refusal(values)

    def contents(self, path: Path) -> Contents | None:
        """See `Repacker`: those of its GGUF."""
        file = gguf_in(path) if (path / MODELFILE).is_file() else None
        return contents_of_file(file) if file else None

    def pack(self, folder: Path, out: Path, packing: Packing) -> None:
        """See `Repacker`. Raises Unsupported for a chat template that is neither ours nor MiniMind's."""
        tokenizer = Tokenizer.load(folder)
        template = go_template(tokenizer.template)
        Gguf().pack(folder, out, packing)
        (file,) = out.glob(f"*{Gguf.suffix}")
        text = _modelfile(file.name, template, read_config(folder)["max_position_embeddings"], tokenizer)
        (out / MODELFILE).write_text(text, encoding="utf-8", newline="\n")
        packing.say(f"in that folder: ollama create NAME -f {MODELFILE}")

    def dequantised(self, path: Path, folder: Path) -> Mapping[str, Tensor]:
        """See `Repacker`: those of its GGUF."""
        return Gguf().dequantised(next(path.glob(f"*{Gguf.suffix}")), folder)


def _modelfile(file: str, template: str, positions: int, tokenizer: Tokenizer) -> str:
    """The Modelfile; sampling is that of `mm chat`."""
    added = tokenizer.backend.get_added_tokens_decoder()
    ends = dict.fromkeys((tokenizer.eos_id, tokenizer.pad_id))
    options = GenerationOptions()
    parameters = [
        *(("stop", f'"{added[index].content}"') for index in ends if index in added),
        ("num_ctx", positions),
        ("temperature", options.temperature),
        ("top_p", options.top_p),
        ("top_k", options.top_k),
        ("min_p", options.min_p),
        ("repeat_penalty", options.repetition_penalty),
    ]
    lines = [f"PARAMETER {name} {value}" for name, value in parameters]
    return "\n".join([f"FROM ./{file}", f'TEMPLATE """{template}"""', *lines, ""])
