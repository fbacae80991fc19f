"""The contract of a converter: a strict table of tensors and a config mapped both ways. Reading and writing follow from them.

Importing this module imports no torch.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mm.core.errors import CheckpointError, UsageError
from mm.runtime.models.config_files import CONFIG, read_config
from mm.runtime.models.hf_files import read_tensors, weight_files
from mm.runtime.models.rules import Rules
from mm.runtime.models.shards import save_in_shards
from mm.runtime.models.storage import atomic_folder
from mm.runtime.models.tensors import cast, compare, named_tensors

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from mm.runtime.models.folder import LoadedModel
    from mm.runtime.text.tokenizer import Tokenizer


class Unsupported(UsageError):
    """A format cannot hold a model of ours, or our architecture cannot hold a model of that format. The message is the reason."""


class Converter(ABC):
    """A checkpoint format of one architecture: a table of tensors and a config, each mapped in both directions."""

    @abstractmethod
    def rules(self, config: Any) -> Rules:
        """The table of tensors of a model with this config."""

    @abstractmethod
    def read_config(self, hf: Mapping[str, Any]) -> Any:
        """The architecture's config from the values of a config.json. Raises Unsupported for a value that it cannot express."""

    @abstractmethod
    def write_config(self, config: Any, tokenizer: Tokenizer) -> dict[str, Any]:
        """The values of config.json, except the weights' type. Raises Unsupported for a value that the format cannot express."""

    def read(self, folder: Path) -> tuple[Any, dict[str, Tensor]]:
        """Read a foreign folder: (config, state dict with our names and the file's types). Tied copies are omitted.

        Raises Unsupported, or CheckpointError naming the tensor that is missing, unexpected, misshapen or damaged.
        """
        config = self.config_from(read_config(folder), folder)
        tensors = read_tensors(folder)
        try:
            return config, self.rules(config).to_ours(tensors)
        except CheckpointError as error:
            files = weight_files(folder)
            place = files[0] if len(files) == 1 else folder
            raise CheckpointError(f"{place}: {error}") from error.__cause__

    def config_from(self, values: Mapping[str, Any], folder: Path) -> Any:
        """The architecture's config from the values of a folder's config.json. Raises Unsupported naming the file."""
        try:
            return self.read_config(values)
        except (Unsupported, ValueError) as error:
            reason = error.args[0] if error.args else repr(error)  # attrs' validators have more in it
            raise Unsupported(f"{folder / CONFIG}: {reason}") from None
        except (ArithmeticError, AttributeError, LookupError, TypeError) as error:  # of the converter's own conversions
            raise Unsupported(f"{folder / CONFIG}: a value of a wrong type ({error!r:.200}).") from None

    def write(
        self, loaded: LoadedModel, folder: Path, dtype: torch.dtype | None = None, max_shard_size: int | None = None
    ) -> None:
        """Write a complete foreign folder, its weights in `dtype` (the model's by default), and read it back. Weights of more
        than `max_shard_size` bytes are written in shards.

        The folder gets its name only if every tensor is read back bit for bit. Raises Unsupported, and CheckpointError for a
        tensor that a rule cannot convert, before anything is written.
        """
        config = self.write_config(loaded.config, loaded.tokenizer)
        own = named_tensors(loaded.model)
        dtype = dtype or next(iter(own.values())).dtype
        try:
            state = cast(self.rules(loaded.config).to_theirs(own), dtype)
        except CheckpointError as error:
            raise CheckpointError(f"{folder}: {error}") from error.__cause__
        config["torch_dtype"] = str(dtype).removeprefix("torch.")
        with atomic_folder(folder, index=False) as path:
            save_in_shards(state, path, max_shard_size)
            _write_json(path / "config.json", config)
            _write_json(path / "generation_config.json", generation_config(loaded.tokenizer))
            loaded.tokenizer.save(path)
            self._check(path, loaded, state)

    def _check(self, folder: Path, loaded: LoadedModel, state: dict[str, Tensor]) -> None:
        config, back = self.read(folder)
        if self.write_config(config, loaded.tokenizer) != self.write_config(loaded.config, loaded.tokenizer):
            raise CheckpointError("The written config.json does not read back as the model's config; nothing was kept.")
        own = named_tensors(loaded.model)
        # if the type is unchanged, the tensors read back must equal the model's, not only those that were written
        kept = {tensor.dtype for tensor in own.values()} == {tensor.dtype for tensor in state.values()}
        compare({n: t.cpu() for n, t in own.items()} if kept else self.rules(loaded.config).to_ours(state), back)


def require_supported(settings: Mapping[str, Any], supported: Mapping[str, tuple[Any, ...]]) -> None:
    """Check settings that may be missing, but must not have other values than the `supported` ones. Raises Unsupported at
    the first other value; its message names the first supported one."""
    for name, values in supported.items():
        if name in settings and settings[name] not in values:
            raise Unsupported(f"{name} is {settings[name]!r:.60}; only {values[0]!r} is supported.")


def generation_config(tokenizer: Tokenizer) -> dict[str, int]:
    """The values of generation_config.json. Without the end token's id there, engines do not stop at it."""
    ids = {"bos_token_id": tokenizer.bos_id, "eos_token_id": tokenizer.eos_id, "pad_token_id": tokenizer.pad_id}
    return {name: index for name, index in ids.items() if index is not None}


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
