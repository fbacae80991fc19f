"""The choices made for the user where a name is left out: backend, data, starting model, engine.

Every choice comes with a line to print, so that nothing is chosen silently.
"""

from __future__ import annotations

from typing import Any

from mm.core.config.composition import SELECT, Composition
from mm.core.errors import UsageError
from mm.core.layers import merge
from mm.core.plugins import PluginManager
from mm.core.records import AlgorithmSpec, BackendSpec, EngineSpec, Probe, SourceSpec
from mm.core.workspace import Workspace

# the chosen values by key, each with the line that says so
Choices = dict[str, tuple[Any, str]]


def choose(composition: Composition, workspace: Workspace) -> Composition:
    """The composition with everything chosen that its selection leaves open. One that has choices already is returned unchanged.

    Raises UsageError that names the missing option if nothing can be chosen.
    """
    if composition.chosen:
        return composition
    spec, _ = composition.required()
    backend, line = choose_backend(composition.plugins, composition.selection.backend)
    choices: Choices = {} if backend == composition.selection.backend else {"backend": (backend, line)}
    choices |= _model(composition, spec, workspace) | _data(composition) | _engine(composition, backend)
    return composition.choosing(choices)


def choose_backend(plugins: PluginManager, name: str) -> tuple[str, str]:
    """A usable backend for `name` ("auto" or a backend, perhaps with a card), and the line that explains it.

    Raises UsageError if the named backend cannot run here, with its probe's reason.
    """
    specs = sorted(plugins.specs(BackendSpec), key=lambda spec: -spec.priority)
    if name != "auto":
        probe = probe_of(plugins.get(BackendSpec, backend_name(name)[0]))
        if not probe.available:
            others = [f" --backend {spec.name} works here." for spec in specs if probe_of(spec).available]
            raise UsageError(f"--backend {name}: {probe.reason}.{''.join(others[:1])}")
        return name, f"backend: {name}"
    unusable: dict[str, str] = {}
    for spec in specs:
        probe = probe_of(spec)
        if probe.available:
            why = f"; not usable here: {', '.join(unusable)} (mm plugins NAME says why)" if unusable else ""
            return spec.name, f"backend: {spec.name}{why}"
        unusable[spec.name] = probe.reason
    reasons = "; ".join(f"{name}: {reason}" for name, reason in unusable.items())
    raise UsageError(f"No backend can run here: {reasons or 'none is installed'}.")


def backend_name(text: str) -> tuple[str, int | None]:
    """`"cuda:1"` as ("cuda", 1). Raises UsageError if the card is not a number."""
    name, colon, card = text.partition(":")
    if colon and not card.isdigit():
        raise UsageError(f"--backend {text}: expected NAME or NAME:CARD with a card's number.")
    return name, int(card) if colon else None


def probe_of(spec: BackendSpec) -> Probe:
    """The result of a backend's probe; one that raises, against its contract, counts as not available."""
    try:
        return spec.probe()
    except Exception as error:
        return Probe(False, f"its probe failed: {error!r}")


def choose_engine(plugins: PluginManager, backend: str, name: str = "") -> EngineSpec:
    """The engine of that name, or the first by name that runs on the backend. Raises UsageError if there is none."""
    chip = backend_name(backend)[0]
    engines = [plugins.get(EngineSpec, name)] if name else plugins.specs(EngineSpec)
    usable = [spec for spec in engines if not spec.backends or chip in spec.backends]
    if not usable:
        why = f"engine {name!r} runs on {', '.join(engines[0].backends)}" if name else "no installed engine does"
        raise UsageError(f"Nothing generates on backend {chip}: {why}.")
    return usable[0]


def _model(composition: Composition, spec: AlgorithmSpec, workspace: Workspace) -> Choices:
    selection = composition.selection
    if selection.from_ or selection.arch:
        if selection.from_ and selection.arch:
            raise UsageError("--arch makes a new model and --from continues one: give one of them.")
        return {}
    run = workspace.newest(spec.starts_from)
    if run is not None and selection.preset:
        made = f"--preset {selection.preset} is for a new model and needs --arch"
        raise UsageError(f"{made}. Without both, {spec.name} continues run {run.name}: leave --preset out.")
    if run is not None:
        return {"from": (run.name, f"model: run {run.name}, the newest that {spec.name} continues")}
    if spec.new_model is None or spec.starts_from:
        raise UsageError(
            f"{spec.name} continues a model ({' or '.join(spec.starts_from)}) and {workspace.path / 'runs'} has none: "
            "pass --from RUN|FOLDER, or --arch NAME --preset NAME to start from random weights."
        )
    arch, preset = spec.new_model
    chosen: Choices = {"arch": (arch, f"model: new, {arch} {selection.preset or preset}")}
    return chosen if selection.preset else {**chosen, "preset": (preset, f"preset: {preset}")}


def _data(composition: Composition) -> Choices:
    if composition.selection.data:
        return {}
    origin = merge(composition.layers, [SELECT.option("data")])[1]["data"]
    if origin != "default":  # as of an unset variable of a shell: nothing is chosen instead
        raise UsageError(f"--data ({origin}) is empty: give a file, a folder or a built-in source, or leave it out.")
    spec, needs = composition.required()
    names = tuple(source.name for source in composition.plugins.specs(SourceSpec) if needs.data in source.provides)
    if not names:
        raise UsageError(f"{spec.name} learns from {needs.data} rows and no installed source brings any: pass --data FILE.")
    return {"data": (names, f"data: {', '.join(names)}, built in")}


def _engine(composition: Composition, backend: str) -> Choices:
    if composition.rollout is None or composition.rollout.engine:
        return {}
    name = choose_engine(composition.plugins, backend).name
    return {"engine": (name, f"engine: {name}")}
