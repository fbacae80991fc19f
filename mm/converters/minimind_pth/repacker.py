"""MiniMind's .pth files and folders of MiniMindForCausalLM, read without running their code, and its .pth files written."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from mm.converters.minimind_pth.layout import HEADS, LAYOUTS, config_of, from_layout, to_layout
from mm.core.errors import UsageError
from mm.core.say import Say
from mm.runtime.devices.dtypes import torch_dtype
from mm.runtime.models.config_files import CONFIG, read_config
from mm.runtime.models.converter import Unsupported
from mm.runtime.models.hf_files import read_pickle, read_tensors, state_dict
from mm.runtime.models.repacker import Packing, Repacker
from mm.runtime.models.tensors import cast
from mm.runtime.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from torch import Tensor

_CLASS = "MiniMindForCausalLM"


class MiniMindPth(Repacker):
    """MiniMind's own files."""

    layouts: ClassVar[tuple[str, ...]] = LAYOUTS
    suffix: ClassVar[str] = ".pth"
    magic: ClassVar[bytes] = b"PK"
    lacks_tokenizer: ClassVar[bool] = True

    def recognises(self, path: Path) -> bool:
        """See `Repacker`: a file that ends in .pth, or a folder whose config.json names MiniMind's class."""
        if path.suffix.lower() == self.suffix:
            return path.is_file()
        named = read_config(path).get("architectures") if (path / CONFIG).is_file() else None
        return isinstance(named, list) and _CLASS in named

    def values(self, path: Path) -> Mapping[str, Any]:
        """See `Repacker`."""
        return _read(path)[0]

    def unpack(self, path: Path, folder: Path, tokenizer: Path | None, say: Say) -> None:
        """See `Repacker`. Of a `_resume.pth` the model is read."""
        from mm.runtime.models.folder import WEIGHTS, save_weights

        config, state = _read(path)
        tensors = to_layout(state, config)
        if config["tie_word_embeddings"]:
            tensors.pop("lm_head.weight", None)
        save_weights(tensors, folder / WEIGHTS)
        (folder / CONFIG).write_text(json.dumps(config), encoding="utf-8")
        Tokenizer.load(tokenizer or self._nearest(path)).save(folder)
        say(f"{path}: {_kind(config)}")

    def tokenizers(self, path: Path) -> Sequence[Path]:
        """See `Repacker`: that beside the file, and MiniMind's `model` there or one folder above."""
        return [folder for folder in _near(path) if (folder / "tokenizer.json").is_file()]

    def _nearest(self, path: Path) -> Path:
        """The folder with the tokenizer: the path itself, or the first of `tokenizers`. Raises UsageError if there is none."""
        if path.is_dir():
            return path
        if found := self.tokenizers(path):
            return found[0]
        raise UsageError(
            f"{path} has no tokenizer, and there is none in {' or '.join(map(str, _near(path)))}: name the folder that has its "
            "tokenizer.json, MiniMind's model/, with --tokenizer."
        )

    def refusal(self, values: Mapping[str, Any]) -> str:
        """See `Repacker`; what else a .pth does not keep is found when it is read back."""
        if values["architectures"][0].startswith("Qwen3") or values["num_attention_heads"] == HEADS:
            return ""
        return f"a .pth does not say num_attention_heads={values['num_attention_heads']}, and MiniMind 2 has {HEADS}."

    def pack(self, folder: Path, out: Path, packing: Packing) -> None:
        """See `Repacker`. The weights are fp16 unless `--dtype` says otherwise, as in MiniMind's files; the tokenizer is written
        beside them, for its folder `model`."""
        import torch

        config, tokenizer = read_config(folder), Tokenizer.load(folder)
        experts = "_moe" if "num_experts" in config else ""
        path = out / f"full_sft_{config['hidden_size']}{experts}{self.suffix}"
        torch.save(cast(from_layout(read_tensors(folder), config), torch_dtype(packing.dtype or "fp16")), path)
        tokenizer.save(out)


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The config.json in a layout, and MiniMind's tensors, of a file or folder."""
    given, state = (read_config(path), read_tensors(path)) if path.is_dir() else ({}, _model_in(path))
    try:
        config = config_of({name: tuple(tensor.shape) for name, tensor in state.items()}, given)
    except Unsupported as error:
        raise Unsupported(f"{path}: {error}") from None
    embedding = state["model.embed_tokens.weight"]
    tied = state.get("lm_head.weight", embedding).equal(embedding)
    return {**config, "tie_word_embeddings": tied, "torch_dtype": str(embedding.dtype).removeprefix("torch.")}, state


def _model_in(path: Path) -> dict[str, Tensor]:
    """The state dict in a .pth; that of the model if it holds the state of a whole training."""
    found = read_pickle(path)
    state = state_dict(path, found["model"] if isinstance(found, dict) and isinstance(found.get("model"), dict) else found)
    if any(".lora." in name for name in state):
        raise Unsupported(f"{path} is a LoRA file: merge it with --adapter lora:{path}, or continue it with --lora-from.")
    return state


def _near(path: Path) -> tuple[Path, ...]:
    return path.parent, path.parent / "model", path.absolute().parent.parent / "model"


def _kind(config: Mapping[str, Any]) -> str:
    """A phrase for the user about the model that was found."""
    third = config["architectures"][0].startswith("Qwen3")
    experts = f", {config['num_experts']} experts" if "num_experts" in config else ""
    return (
        f"MiniMind {3 if third else 2}, {config['num_hidden_layers']} layers of {config['hidden_size']}{experts}, "
        f"{config['num_attention_heads']} heads and {config['num_key_value_heads']} for keys and values"
    )
