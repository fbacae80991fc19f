"""A trained model in use: its backend, type and engine, and the settings of it that may differ from those it was saved with.

Imports no torch: the chosen backend's environment is set before the training modules are imported.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import attrs
from attrs import frozen

from mm.core.config.autoselect import choose_backend, choose_engine
from mm.core.config.resolve import check_keys, read_config
from mm.core.config.sections import Section, check_owners, compose_selected, section_of
from mm.core.configs import ArchitectureConfig
from mm.core.errors import UsageError
from mm.core.layers import Layer, merge
from mm.core.options import Option, option, options_of
from mm.core.plugins import PluginManager
from mm.core.records import ArchitectureSpec

_MODEL = "model"


@frozen(kw_only=True)
class InferenceSelection:
    """What opens a model."""

    backend: str = option("auto", help="Chip: auto or a backend's name, with a card as in NAME:1.")
    dtype: str = option("auto", help="Type of the weights.", choices=("auto", "fp32", "bf16", "fp16"))
    engine: str = option("", help="What generates; left out, the first that runs on the backend.")


@frozen(kw_only=True)
class Inference:
    """How a model is opened: `backend` and `engine` are chosen and usable, `changes` are fields of the model's config
    with values other than the saved ones. `messages` explain what was chosen."""

    backend: str
    dtype: str
    engine: str
    engine_config: Any
    changes: Mapping[str, Any] = attrs.field(factory=dict)
    messages: tuple[str, ...] = ()


@frozen(kw_only=True)
class ModelSection:
    """The settings that a trained model may be loaded with, of all installed architectures; their options are bare."""

    options: list[Option]
    name: str = _MODEL


def model_section(plugins: PluginManager) -> ModelSection:
    """Every option that is marked `on_load`; architectures that share a field's name share the option."""
    found: dict[str, Option] = {}
    for spec in plugins.specs(ArchitectureSpec):
        for o in options_of(spec.config, section=_MODEL):
            if o.info.on_load:
                found.setdefault(o.key, o)
    return ModelSection(options=list(found.values()))


def inference_sections(
    plugins: PluginManager, selection: InferenceSelection, extra: Sequence[tuple[str, type]] = ()
) -> list[Section | ModelSection]:
    """The sections of a command that opens models; `extra` are its own settings, bare. Raises UsageError for a clash."""
    composed = compose_selected(plugins, [selection], (("select", InferenceSelection), *extra))
    sections: list[Section | ModelSection] = [*composed, model_section(plugins)]
    check_owners(o for section in sections for o in section.options)
    return sections


def likely_selection(plugins: PluginManager, layers: Sequence[Layer]) -> InferenceSelection:
    """What the layers select, with the engine that would be chosen: it has options too."""
    selection: InferenceSelection = read_config(InferenceSelection, layers, "select")
    try:
        backend, _ = choose_backend(plugins, selection.backend)
        return attrs.evolve(selection, engine=choose_engine(plugins, backend, selection.engine).name)
    except UsageError:  # said where the line is resolved, once it has been parsed
        return selection


def resolve_inference(
    plugins: PluginManager, layers: Sequence[Layer], extra: Sequence[tuple[str, type]] = ()
) -> tuple[Inference, dict[str, Any]]:
    """How the layers (highest first) say that a model is opened, and an instance of each config class in `extra`.

    Raises UsageError for an unknown or ill-typed value, and for a backend or engine that cannot be used here.
    """
    selection: InferenceSelection = read_config(InferenceSelection, layers, "select")
    backend, line = choose_backend(plugins, selection.backend)
    spec = choose_engine(plugins, backend, selection.engine)
    selection = attrs.evolve(selection, engine=spec.name)
    sections = inference_sections(plugins, selection, extra)
    check_keys(plugins, [o for section in sections for o in section.options], layers, selection)
    inference = Inference(
        backend=backend, dtype=selection.dtype, engine=spec.name,
        engine_config=section_of(spec).read(layers) if spec.config else None,
        changes=changes_of(plugins, layers),
        messages=(line,) if selection.backend == "auto" else (),
    )  # fmt: skip
    return inference, {name: read_config(config, layers, name) for name, config in extra}


def changes_of(plugins: PluginManager, layers: Sequence[Layer], *, strict: bool = False) -> dict[str, Any]:
    """The settings of a trained model that the layers (highest first) change on loading, by field.

    Raises UsageError for an ill-typed value and, where `strict`, for a key that is no such setting.
    """
    options = model_section(plugins).options
    if strict:
        check_keys(plugins, options, layers, None)
    given = merge(layers, options)[0]
    return {o.field: given[o.key] for o in options if o.key in given}


def changed(spec: ArchitectureSpec, config: ArchitectureConfig, changes: Mapping[str, Any]) -> ArchitectureConfig:
    """A model's config with some of its settings changed on loading, by its `loaded_with`. Raises UsageError for a setting
    that this architecture does not have, or a value that it refuses."""
    if not changes:
        return config
    flags = {o.field: o.flag for o in options_of(spec.config, section=_MODEL) if o.info.on_load}
    for name in changes.keys() - flags.keys():
        raise UsageError(f"--{name.replace('_', '-')}: a model of architecture {spec.name!r} has no such setting on loading.")
    try:
        return config.loaded_with(**changes)
    except ValueError as error:
        flag = next((f for field, f in flags.items() if f"'{field}'" in str(error)), ", ".join(flags[n] for n in changes))
        raise UsageError(f"{flag}: {error.args[0]}") from None
