"""Tiny tokenizers, models, rows and runs. Importing this module imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mm.core.plugins import PluginManager
from mm.core.records import AlgorithmSpec, ArchitectureSpec
from mm.testing.suites.rows import ROWS, parse_rows

if TYPE_CHECKING:
    from mm.core.config.composition import Composition, Resolved
    from mm.core.workspace import RunFolder
    from mm.runtime.nn.batch import Unit
    from mm.runtime.nn.model import Model
    from mm.runtime.text.rows import Row
    from mm.runtime.text.tokenizer import Tokenizer


def tiny_tokenizer(vocab_size: int = 300) -> Tokenizer:
    """A byte-level tokenizer with a few merges; the same one each time."""
    from mm.runtime.data.tokenizer_training import TrainingOptions, train_tokenizer

    texts = [row["text"] for row in ROWS["text"]] + [turn["content"] for row in ROWS["chat"] for turn in row["messages"]]
    return train_tokenizer(texts * 3, TrainingOptions(vocab_size=vocab_size))


def tiny_model(
    architecture: str = "dense", vocab_size: int = 300, seed: int = 0, *, plugins: PluginManager | None = None
) -> Model:
    """The smallest preset of an architecture with new weights, initialised from `seed`, on the CPU in float32."""
    from mm.testing.suites.model import small_model

    spec = (plugins or PluginManager.discover()).get(ArchitectureSpec, architecture)
    return small_model(spec, vocab_size, seed)


def tiny_rows(kind: str) -> list[dict[str, Any]]:
    """JSON rows of a built-in kind: text, chat, preference, unpaired, prompt or episode. Empty for any other kind."""
    return list(ROWS.get(kind, []))


def tiny_units(
    kind: str,
    tokenizer: Tokenizer,
    *,
    rows: Sequence[Mapping[str, Any]] | None = None,
    plugins: PluginManager | None = None,
) -> list[Unit] | None:
    """Rows of a kind, encoded to units; see `tiny_typed_rows`, which also explains None."""
    typed = tiny_typed_rows(kind, rows=rows, plugins=plugins)
    return None if typed is None else units_of(typed, tokenizer)


def tiny_typed_rows(
    kind: str, *, rows: Sequence[Mapping[str, Any]] | None = None, plugins: PluginManager | None = None
) -> list[Row] | None:
    """Rows of a kind, parsed by the formats of that kind. `rows` are JSON rows, by default those of `tiny_rows`.

    None if there are no rows, or no format of that kind.
    """
    return parse_rows(kind, tiny_rows(kind) if rows is None else rows, plugins or PluginManager.discover()) or None


def units_of(rows: Sequence[Row], tokenizer: Tokenizer) -> list[Unit]:
    """The rows encoded to units, each sequence at most 512 tokens long; `row_index` is the index in `rows`."""
    import torch

    from mm.runtime.nn.batch import Tokens, Unit

    units = []
    for row_index, row in enumerate(rows):
        encoded = row.encode(tokenizer, 512)
        for index, unit in enumerate(encoded.units):
            values = encoded.values[index] if encoded.values else {}
            sequences = tuple(Tokens(torch.tensor(ids), {"learn": torch.tensor(learn)}) for ids, learn in unit)
            units.append(Unit(sequences, row_index=row_index, values=values))
    return units


def tiny_run(
    workspace: Path, algo: str, *, plugins: PluginManager | None = None, rows: Any = None, resume: bool = False, **options: Any
) -> RunFolder:
    """Train a new tiny dense model for two steps on the CPU, as `mm.train` does. `options` are further settings, which replace
    these defaults; `rows` are JSON rows, by default those of the algorithm's kind."""
    from mm.core.say import silent
    from mm.core.workspace import Workspace
    from mm.runtime.runs import api

    composition = _tiny_composition(workspace, algo, plugins or PluginManager.discover(), rows, options)
    return api.start(composition, Workspace(workspace), resume=resume, say=silent)


def tiny_resolved(workspace: Path, algo: str, *, plugins: PluginManager) -> Resolved:
    """The settings of `tiny_run`, without training."""
    return _tiny_composition(workspace, algo, plugins, None, {"run": "tiny"}).resolve()


def _tiny_composition(workspace: Path, algo: str, plugins: PluginManager, rows: Any, options: Mapping[str, Any]) -> Composition:
    import json

    from mm.core.config.composition import Composition
    from mm.core.layers import argument_layer, environment_layer

    spec = plugins.get(AlgorithmSpec, algo)
    tiny_tokenizer().save(make_folder(workspace / "tiny_tokenizer"))
    data = make_folder(workspace) / "tiny_rows.jsonl"
    rows = rows or tiny_rows(spec.needs(spec.config() if spec.config else None).data)
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    tiny = {
        "arch": "dense", "preset": "tiny", "tokenizer": workspace / "tiny_tokenizer", "data": data, "backend": "cpu",
        "max_steps": 2, "global_batch_size": 2, "max_length": 128, "eval_ratio": 0.0, "dtype": "fp32",
    }  # fmt: skip
    if options.get("from_"):
        tiny = {name: value for name, value in tiny.items() if name not in ("arch", "preset", "tokenizer")}
    return Composition(plugins, [argument_layer({"algo": algo, **tiny, **options}), environment_layer()])


def make_folder(folder: Path) -> Path:
    """Create a folder and its parents, and return it."""
    folder.mkdir(parents=True, exist_ok=True)
    return folder
