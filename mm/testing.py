"""For authors of plugins: the conformance kit of each kind, and tiny models, tokenizers and runs to test with.

    def test_conformance():
        spec = plugin_manager("mm_focal").get("algorithm", "focal")
        assert_passed(check_algorithm(spec))

Importing this module imports no torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from mm.core.conformance.rows import ROWS, parse_rows
from mm.core.conformance.suite import Check, Suite, options_of_part
from mm.core.plugins import PluginManager
from mm.core.records import (
    AdapterSpec,
    AlgorithmSpec,
    ArchitectureSpec,
    BackendSpec,
    ConverterSpec,
    EngineSpec,
    RewardSpec,
    Spec,
    ToolSpec,
)  # fmt: skip

if TYPE_CHECKING:
    from torch import nn

    from mm.core.contracts import Engine
    from mm.core.data.rows import Row
    from mm.core.data.tokenizer import Tokenizer
    from mm.core.training.batch import Unit
    from mm.core.workspace import RunFolder

__all__ = [
    "Check", "assert_passed", "check_adapter", "check_algorithm", "check_architecture", "check_backend", "check_converter",
    "check_part", "check_reward", "check_tool", "fake_distribution", "plugin_manager", "tiny_model", "tiny_rows",
    "tiny_run", "tiny_tokenizer", "tiny_units",
]  # fmt: skip

# ---- the kit


def check_backend(spec: BackendSpec, *, module: str | None = None) -> list[Check]:
    """The checks of a chip; after the declaration they are skipped where its probe says that it is absent.

    `module` is where the part is declared, when that cannot be seen from its record.
    """
    from mm.core.conformance.backend import BackendSuite

    return _run(BackendSuite(spec, tiny_model(), module))


def check_architecture(spec: ArchitectureSpec, *, module: str | None = None) -> list[Check]:
    """The checks of a model, on the smallest of its presets."""
    from mm.core.conformance.architecture import ArchitectureSuite

    return _run(ArchitectureSuite(spec, module))


def check_algorithm(
    spec: AlgorithmSpec,
    *,
    architecture: str = "dense",
    rows: Sequence[Mapping[str, Any]] | None = None,
    plugins: PluginManager | None = None,
    module: str | None = None,
) -> list[Check]:
    """The checks of an algorithm on tiny models; `rows` are JSON rows, which a kind of the author's own needs."""
    from mm.core.conformance.algorithm import AlgorithmSuite

    manager, tokenizer = plugins or PluginManager.discover(), tiny_tokenizer()
    try:
        kind = spec.needs(spec.config() if spec.config else None).data
    except Exception:  # check_needs raises it again, and reports it
        kind = ""
    typed = tiny_typed_rows(kind, rows=rows, plugins=manager)
    units = None if typed is None else _units(typed, tokenizer)
    make_model = lambda seed: tiny_model(architecture, tokenizer.vocab_size, seed, plugins=manager)  # noqa: E731
    engine = next((s for s in manager.specs("engine") if isinstance(s, EngineSpec) and not s.backends), None)
    make_engine = None if engine is None else lambda model: _engine(engine, model)
    parts = [part for kind in ("adapter", "engine", "reward", "tool") for part in manager.specs(kind) if part.config]
    part_options = {option.key for part in parts for option in options_of_part(part)}
    return _run(AlgorithmSuite(
        spec, make_model, units, tokenizer, module, make_engine=make_engine, rows=typed or (), part_options=part_options
    ))  # fmt: skip


def check_adapter(
    spec: AdapterSpec, *, architecture: str = "dense", plugins: PluginManager | None = None, module: str | None = None
) -> list[Check]:
    """The checks of an adapter, on a tiny model."""
    from mm.core.conformance.adapter import AdapterSuite

    manager = plugins or PluginManager.discover()
    return _run(AdapterSuite(spec, lambda: tiny_model(architecture, plugins=manager), module))


def check_converter(
    spec: ConverterSpec, *, plugins: PluginManager | None = None, module: str | None = None
) -> list[Check]:
    """The checks of a checkpoint format, on the smallest preset that it can hold."""
    from mm.core.conformance.converter import ConverterSuite

    architecture = (plugins or PluginManager.discover()).get("architecture", spec.architecture)
    assert isinstance(architecture, ArchitectureSpec)
    return _run(ConverterSuite(spec, architecture, tiny_tokenizer(), module))


def check_reward(
    spec: RewardSpec, *, rows: Sequence[Mapping[str, Any]] | None = None, config: Any = None,
    plugins: PluginManager | None = None, module: str | None = None,
) -> list[Check]:  # fmt: skip
    """The checks of a reward, on a few prompts and episodes or on `rows` (JSON rows of prompts); one whose defaults do not
    suffice is skipped without a `config`."""
    from mm.core.conformance.reward import RewardSuite

    manager = plugins or PluginManager.discover()
    asked = {"prompt": rows} if rows is not None else {kind: ROWS[kind] for kind in ("prompt", "episode")}
    parsed = [row for kind, found in asked.items() for row in parse_rows(kind, found, manager)]
    return list(RewardSuite(spec, parsed, config, module).run())


def check_tool(spec: ToolSpec, *, module: str | None = None) -> list[Check]:
    """The checks of a tool."""
    from mm.core.conformance.tool import ToolSuite

    return list(ToolSuite(spec, module).run())


def check_part(spec: Spec, *, plugins: PluginManager | None = None, module: str | None = None) -> list[Check]:
    """The checks of a part of any kind; those without a kit of their own get the declaration's."""
    if isinstance(spec, BackendSpec):
        return check_backend(spec, module=module)
    if isinstance(spec, ArchitectureSpec):
        return check_architecture(spec, module=module)
    if isinstance(spec, AlgorithmSpec):
        return check_algorithm(spec, plugins=plugins, module=module)
    if isinstance(spec, ConverterSpec):
        return check_converter(spec, plugins=plugins, module=module)
    if isinstance(spec, RewardSpec):
        return check_reward(spec, plugins=plugins, module=module)
    if isinstance(spec, ToolSpec):
        return check_tool(spec, module=module)
    if isinstance(spec, AdapterSpec):
        return check_adapter(spec, plugins=plugins, module=module)
    return list(Suite(spec, module).run())


def _run(suite: Suite) -> list[Check]:
    """On one thread: the models are so small that a second one only waits."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return list(suite.run())
    finally:
        torch.set_num_threads(before)


def assert_passed(checks: Iterable[Check]) -> None:
    """Raise AssertionError listing the checks that failed."""
    failed = [f"{check.name}: {check.detail}" for check in checks if not check.ok]
    assert not failed, "\n".join(failed)


# ---- plugins


def plugin_manager(*modules: str | ModuleType, options: Sequence[str] = ()) -> PluginManager:
    """A manager with everything that is installed and these modules (or .py files), which need not be installed.

    Raises AssertionError with the traceback when one of them is broken.
    """
    names = [module if isinstance(module, str) else module.__name__ for module in modules]
    manager = PluginManager.discover([*options, *names], environ={})
    broken = [plugin for plugin in manager.broken() if plugin.value in manager.options]
    assert not broken, broken[0].error
    return manager


def fake_distribution(
    folder: Path, name: str, version: str, entry_points: Mapping[str, str], files: Mapping[str, str] | None = None
) -> Path:
    """Write what an installed distribution leaves: a dist-info folder with `entry_points`, and source `files`.

    Answers `folder`, which takes effect once it is on `sys.path` (`monkeypatch.syspath_prepend`).
    """
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n", encoding="utf-8")
    lines = "".join(f"{entry} = {value}\n" for entry, value in entry_points.items())
    (info / "entry_points.txt").write_text(f"[mm.plugins]\n{lines}", encoding="utf-8")
    for path, text in (files or {}).items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text, encoding="utf-8")
    return folder


# ---- tiny things


def tiny_tokenizer(vocab_size: int = 300) -> Tokenizer:
    """A byte-level tokenizer of a few merges; equal each time."""
    from mm.core.data.tokenizer_training import TrainingOptions, train_tokenizer

    texts = [row["text"] for row in ROWS["text"]] + [turn["content"] for row in ROWS["chat"] for turn in row["messages"]]
    return train_tokenizer(texts * 3, TrainingOptions(vocab_size=vocab_size))


def tiny_model(
    architecture: str = "dense", vocab_size: int = 300, seed: int = 0, *, plugins: PluginManager | None = None
) -> nn.Module:
    """The smallest preset of an architecture with fresh weights, on the CPU in float32."""
    from mm.core.conformance.architecture import small_model

    spec = (plugins or PluginManager.discover()).get("architecture", architecture)
    assert isinstance(spec, ArchitectureSpec)
    return small_model(spec, vocab_size, seed)


def tiny_rows(kind: str) -> list[dict[str, Any]]:
    """JSON rows of a built-in kind: text, chat, preference, unpaired, prompt or episode; none for another."""
    return list(ROWS.get(kind, []))


def tiny_units(
    kind: str,
    tokenizer: Tokenizer,
    *,
    rows: Sequence[Mapping[str, Any]] | None = None,
    plugins: PluginManager | None = None,
) -> list[Unit] | None:
    """Rows of a kind as units, read by the format that gives it; None when there is no such format or no rows."""
    typed = tiny_typed_rows(kind, rows=rows, plugins=plugins)
    return None if typed is None else _units(typed, tokenizer)


def tiny_typed_rows(
    kind: str, *, rows: Sequence[Mapping[str, Any]] | None = None, plugins: PluginManager | None = None
) -> list[Row] | None:
    """Rows of a kind as the format that gives it reads them; None when there is no such format or no rows."""
    return parse_rows(kind, tiny_rows(kind) if rows is None else rows, plugins or PluginManager.discover()) or None


def _units(rows: Sequence[Row], tokenizer: Tokenizer) -> list[Unit]:
    import torch

    from mm.core.training.batch import Tokens, Unit

    units = []
    for number, row in enumerate(rows):
        encoded = row.encode(tokenizer, 512)
        for index, unit in enumerate(encoded.units):
            values = encoded.values[index] if encoded.values else {}
            sequences = tuple(Tokens(torch.tensor(ids), {"learn": torch.tensor(learn)}) for ids, learn in unit)
            units.append(Unit(sequences, row=number, values=values))
    return units


def _engine(spec: EngineSpec, model: nn.Module) -> Engine:
    from mm.core.backend import Backend

    engine: Engine = spec.load()(spec.config() if spec.config else None, model, Backend())
    return engine


def tiny_run(
    workspace: Path, algo: str, *, plugins: PluginManager | None = None, rows: Any = None, **options: Any
) -> RunFolder:
    """Train two steps of a new tiny dense model on the CPU, as `mm.train` does; `options` change or add settings."""
    import json

    import mm

    manager = plugins or PluginManager.discover()
    spec = manager.get("algorithm", algo)
    assert isinstance(spec, AlgorithmSpec)
    tiny_tokenizer().save(_made(workspace / "tiny_tokenizer"))
    data = _made(workspace) / "tiny_rows.jsonl"
    rows = rows or tiny_rows(spec.needs(spec.config() if spec.config else None).data)
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    tiny = {
        "arch": "dense", "preset": "tiny", "tokenizer": workspace / "tiny_tokenizer", "data": data, "backend": "cpu",
        "max_steps": 2, "global_batch_size": 2, "max_length": 128, "eval_ratio": 0.0, "dtype": "fp32",
    }  # fmt: skip
    if options.get("from_"):
        tiny = {name: value for name, value in tiny.items() if name not in ("arch", "preset", "tokenizer")}
    return mm.train(algo, workspace=workspace, plugins=manager, quiet=True, **{**tiny, **options})


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder
