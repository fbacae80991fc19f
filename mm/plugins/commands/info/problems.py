"""The problems of a model folder that show without reading the values of its weights. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from mm.core.errors import MMError
from mm.runtime.models.checks import check_size
from mm.runtime.models.description import Described
from mm.runtime.models.hf_files import headers, weight_files
from mm.runtime.text.jinja import fault_of
from mm.runtime.text.tokenizer import Tokenizer


def problems_of(folder: Path, described: Described) -> list[str]:
    """The problems, each in one sentence; empty for a folder that other commands can use, if its weights' values are sound."""
    return [*_of_weights(folder, described), *_of_tokenizer(folder, described)]


def _of_weights(folder: Path, described: Described) -> Iterator[str]:
    files = weight_files(folder)
    if not files:
        yield "there are no weights"
    elif all(path.suffix == ".safetensors" for path in files):  # a pickled file has no header
        try:
            found = headers(folder)
            if described.converter is None:
                check_size(folder, described.config, found)
            else:
                described.converter.rules(described.config).check_header(found)
        except MMError as error:
            yield str(error).removeprefix(f"{folder}: ").rstrip(".")


def _of_tokenizer(folder: Path, described: Described) -> Iterator[str]:
    if not (folder / "tokenizer.json").is_file():
        yield "there is no tokenizer (tokenizer.json)"
        return
    tokenizer, rows = Tokenizer.load(folder), described.config.vocab_size
    if tokenizer.vocab_size > rows:
        yield f"the tokenizer has {tokenizer.vocab_size:,} token ids, and the embedding {rows:,} rows"
    if fault := fault_of(tokenizer.template):
        yield f"{fault}; conversations cannot be rendered"
    for name in ("bos_token_id", "eos_token_id"):
        value = described.values.get(name)
        for index in value if isinstance(value, list) else [value]:
            if type(index) is int and not 0 <= index < rows:
                yield f"config.json: {name} is {index}, and the vocabulary has {rows:,} ids; the tokenizer's own is used instead"
