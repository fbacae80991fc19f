"""Writes model.onnx, runs it, and compares it with the model that it was made of."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

from mm.converters.llama.converter import Llama
from mm.converters.qwen2.converter import Qwen2
from mm.converters.qwen3.converter import Qwen3
from mm.core.errors import UsageError
from mm.plugins.architectures.dense.model import Dense
from mm.plugins.extras import install_command
from mm.runtime.models.config_files import read_config
from mm.runtime.models.converter import Converter
from mm.runtime.models.hf_files import weight_files
from mm.runtime.models.repacker import Contents, Packing, Repacker
from mm.runtime.nn.kernels import Kernels
from mm.runtime.text.tokenizer import Tokenizer

_CONVERTERS: dict[str, Callable[[], Converter]] = {
    "LlamaForCausalLM": Llama, "Qwen2ForCausalLM": Qwen2, "Qwen3ForCausalLM": Qwen3,
}  # fmt: skip
_EXPERTS = ("Qwen2MoeForCausalLM", "Qwen3MoeForCausalLM")
# a message of protocol buffers ends below 2 GiB; the rest of the graph takes less than this
_LARGEST = 2**31 - 2**22


class Onnx(Repacker):
    """ONNX in float32, with a KV cache, under the names that Hugging Face optimum uses."""

    layouts: ClassVar[tuple[str, ...]] = (*_CONVERTERS, *_EXPERTS)
    suffix: ClassVar[str] = ".onnx"

    def refusal(self, values: Mapping[str, Any]) -> str:
        """See `Repacker`."""
        if values["architectures"][0] in _EXPERTS:
            return "ONNX's operators would compute every expert for every token, so mixtures of experts are not written."
        size = 4 * _CONVERTERS[values["architectures"][0]]().read_config(values).num_parameters()
        return f"one ONNX file holds less than 2 GiB, and its weights take {size:,} bytes." if size > _LARGEST else ""

    def contents(self, path: Path) -> Contents | None:
        """See `Repacker`: of a file, or of a folder with a model.onnx."""
        file = path if path.is_file() else path / f"model{self.suffix}"
        if file.suffix.lower() != self.suffix or not file.is_file():
            return None
        from mm.converters.onnx.contents import contents_of_file

        return contents_of_file(file, path if path.is_dir() else None)

    def pack(self, folder: Path, out: Path, packing: Packing) -> None:
        """See `Repacker`. Beside the file are config.json, generation_config.json and the tokenizer. Raises UsageError without
        the package onnx, and CheckpointError if onnxruntime, where it is installed, computes something else than our model."""
        if packing.dtype not in (None, "fp32"):
            raise UsageError(f"--dtype {packing.dtype}: onnx is written in fp32 only. Omit the option.")
        try:
            import onnx
        except ImportError:
            raise UsageError(f"--to onnx needs the package onnx: {install_command('onnx')}") from None
        from mm.converters.onnx.check import check
        from mm.converters.onnx.graph import OPSET, decoder_graph

        config, state = _CONVERTERS[read_config(folder)["architectures"][0]]().read(folder)
        graph = decoder_graph(config, state)
        onnx.checker.check_model(graph, full_check=True)
        path = out / f"model{self.suffix}"
        path.write_bytes(graph.SerializeToString())
        del graph  # as large as the weights, and so is what onnxruntime loads
        weights = weight_files(folder)
        for file in folder.iterdir():
            if file not in weights:
                shutil.copy(file, out / file.name)
        model = Dense(config, Kernels())
        model.load_state_dict(state, strict=False)  # a tied output layer is there under one of its names
        packing.say(f"{path.name}: opset {OPSET}, float32; {check(path, model, Tokenizer.load(folder))}")
