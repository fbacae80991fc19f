"""What is chosen for the user when a name is left out: backend, data, starting model, tokenizer, run name.

Every choice comes with a line to print, so that nothing is chosen silently.
"""

from __future__ import annotations

from typing import Any

import attrs

from mm.core.config.resolve import backend_name, needs_from, read_config, select
from mm.core.errors import UsageError
from mm.core.layers import Layer
from mm.core.plugins import PluginManager
from mm.core.records import AlgorithmSpec, BackendSpec, EngineSpec, Needs, Probe, SourceSpec
from mm.core.run import Run
from mm.core.settings import RolloutParts, Selection
from mm.core.workspace import Workspace


@attrs.define
class Choices:
    """Values chosen, as a layer below what the user gave, and the lines that say so."""

    values: dict[str, Any] = attrs.field(factory=dict)
    lines: list[str] = attrs.field(factory=list)

    def add(self, key: str, value: Any, line: str) -> None:
        """Choose one value."""
        self.values[key] = value
        self.lines.append(line)

    @property
    def layer(self) -> Layer:
        """The choices as a layer."""
        return Layer(origin="chosen", values=self.values)


def choose(plugins: PluginManager, layers: list[Layer], workspace: Workspace) -> Choices:
    """Fill what the selection leaves open. Raises UsageError naming what to pass where nothing can be chosen."""
    selection = select(layers)
    if not selection.algo:
        known = ", ".join(s.name for s in plugins.specs(AlgorithmSpec))
        raise UsageError(f"Missing option --algo. Known: {known}.")
    spec = plugins.get(AlgorithmSpec, selection.algo)
    choices = Choices()
    _choose_backend(plugins, selection, choices)
    _choose_model(spec, selection, workspace, choices)
    _choose_data(plugins, spec, selection, layers, choices)
    _choose_engine(plugins, layers, choices)
    return choices


def choose_backend(plugins: PluginManager, name: str) -> tuple[str, str]:
    """A usable backend for `name` ("auto" or a backend, perhaps with a card), and the line that explains it.

    Raises UsageError when the named backend cannot run here, with its probe's reason.
    """
    if name != "auto":
        spec = plugins.get(BackendSpec, backend_name(name)[0])
        probe = probe_of(spec)
        if not probe.available:
            raise UsageError(f"--backend {name}: {probe.reason}.")
        return name, f"backend: {name}"
    reasons: list[str] = []
    for spec in sorted(plugins.specs(BackendSpec), key=lambda s: -s.priority):
        probe = probe_of(spec)
        if probe.available:
            why = f" ({'; '.join(reasons)})" if reasons else ""
            return spec.name, f"backend: {spec.name}, the best available{why}"
        reasons.append(f"{spec.name}: {probe.reason}")
    raise UsageError(f"No backend can run here: {'; '.join(reasons) or 'none is installed'}.")


def probe_of(spec: BackendSpec) -> Probe:
    """The answer of a backend's probe; one that raises, against its contract, only says so."""
    try:
        return spec.probe()
    except Exception as error:
        return Probe(False, f"its probe failed: {error!r}")


def choose_engine(plugins: PluginManager, backend: str, name: str = "") -> EngineSpec:
    """The engine of that name, or the first by name that runs on the backend. Raises UsageError when there is none."""
    chip = backend_name(backend)[0]
    engines = [plugins.get(EngineSpec, name)] if name else plugins.specs(EngineSpec)
    usable = [spec for spec in engines if not spec.backends or chip in spec.backends]
    if not usable:
        why = f"engine {name!r} runs on {', '.join(engines[0].backends)}" if name else "no installed engine does"
        raise UsageError(f"Nothing generates on backend {chip}: {why}.")
    return usable[0]


def needs_of(plugins: PluginManager, run: Run) -> Needs:
    """What the run's algorithm needs with its config."""
    spec = plugins.get(AlgorithmSpec, run.select.algo)
    return spec.needs(run.algorithm)


def _choose_backend(plugins: PluginManager, selection: Selection, choices: Choices) -> None:
    name, line = choose_backend(plugins, selection.backend)
    if name != selection.backend:
        choices.add("backend", name, line)


def _choose_model(spec: AlgorithmSpec, selection: Selection, workspace: Workspace, choices: Choices) -> None:
    if selection.from_ or selection.arch:
        if selection.from_ and selection.arch:
            raise UsageError("--arch makes a new model and --from continues one: give one of them.")
        return
    run = workspace.newest(spec.starts_from)
    if run is not None:
        choices.add("from", run.name, f"model: run {run.name}, the newest that {spec.name} continues")
    elif spec.new_model and not spec.starts_from:
        arch, preset = spec.new_model
        choices.add("arch", arch, f"model: new, {arch} {selection.preset or preset}")
        if not selection.preset:
            choices.add("preset", preset, f"preset: {preset}")
    else:
        raise UsageError(
            f"{spec.name} continues a model ({' or '.join(spec.starts_from)}) and {workspace.path / 'runs'} has none: "
            "pass --from RUN|FOLDER, or --arch NAME --preset NAME to start from random weights."
        )


def _choose_data(
    plugins: PluginManager, spec: AlgorithmSpec, selection: Selection, layers: list[Layer], choices: Choices
) -> None:
    if selection.data:
        return
    kind = _row_kind(plugins, layers)
    sources = [s for s in plugins.specs(SourceSpec) if kind in s.provides]
    if not sources:
        raise UsageError(f"{spec.name} learns from {kind} rows and no installed source brings any: pass --data FILE.")
    names = tuple(s.name for s in sources)
    choices.add("data", names, f"data: {', '.join(names)}, built in")


def _choose_engine(plugins: PluginManager, layers: list[Layer], choices: Choices) -> None:
    needs = needs_from(plugins, layers)
    parts: RolloutParts = read_config(RolloutParts, layers, "rollout")
    if needs is not None and needs.generates and not parts.engine:
        name = choose_engine(plugins, select([*layers, choices.layer]).backend).name
        choices.add("engine", name, f"engine: {name}")


def _row_kind(plugins: PluginManager, layers: list[Layer]) -> str:
    """The kind of row, which may depend on the algorithm's own settings."""
    needs = needs_from(plugins, layers)
    assert needs is not None
    return needs.data
