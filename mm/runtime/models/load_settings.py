"""A trained model in use: its backend, type and engine, and the settings that may be changed when it is loaded.

Imports no torch: the chosen backend's environment is set before the training modules are imported.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import attrs
from attrs import frozen

from mm.core.config.autoselect import choose_backend, choose_engine
from mm.core.config.sections import Section, check_owners, compose_selected, section_of
from mm.core.config.unknown import check_keys
from mm.core.configs import ArchitectureConfig
from mm.core.errors import UsageError
from mm.core.layers import Layer, merge
from mm.core.options import Option, option, options_of, refusal
from mm.core.plugins import PluginManager
from mm.core.records import ArchitectureSpec, EngineSpec

_MODEL = "model"
_USED = ("source.", "tool.")  # the sections of parts that a command uses beside its model


@frozen(kw_only=True)
class InferenceSelection:
    """The parts that open a model."""

    backend: str = option("auto", help="Chip: auto or a backend's name, with a card as in NAME:1.")
    dtype: str = option("auto", help="Type of the weights.", choices=("auto", "fp32", "bf16", "fp16"))
    engine: str = option("", help="Engine that generates; by default the first that runs on the backend.")


_SELECT = Section(name="select", config=InferenceSelection)


@frozen(kw_only=True)
class Inference:
    """How a model is opened: `backend` and `engine` are chosen and usable, `changes` are fields of the model's config
    with values other than the saved ones. `parts` are the configs of the command's sources and tools, by section."""

    backend: str
    dtype: str
    engine: str
    engine_config: Any
    changes: Mapping[str, Any] = attrs.field(factory=dict)
    parts: Mapping[str, Any] = attrs.field(factory=dict)


@attrs.frozen(slots=False, eq=False)
class LoadSettings:
    """The settings that a trained model may be loaded with, of all installed architectures: a section of bare options, and the
    values that layers (highest first) give them. Architectures that share a field's name share the option. `converts`: also
    those that concern a training of the written model, and no use of it."""

    plugins: PluginManager
    layers: Sequence[Layer]
    name: str = _MODEL
    converts: bool = False

    @property
    def sections(self) -> list[LoadSettings]:
        """All sections of a command that has no others."""
        return [self]

    @cached_property
    def options(self) -> tuple[Option, ...]:
        """Every option that is marked `on_load`, for this use."""
        found: dict[str, Option] = {}
        for spec in self.plugins.specs(ArchitectureSpec):
            for o in options_of(spec.config, section=_MODEL):
                if o.info.on_load and (self.converts or o.info.on_load != "convert"):
                    found.setdefault(o.key, o)
        return tuple(found.values())

    @cached_property
    def changes(self) -> dict[str, Any]:
        """The settings that the layers change, by field. Raises UsageError for an ill-typed value."""
        given = merge(self.layers, self.options)[0]
        return {o.field: given[o.key] for o in self.options if o.key in given}


@attrs.frozen(slots=False, eq=False)
class InferenceComposition:
    """The options of a command that opens models and what layers of values (highest first) make of them; `own` is the section
    of the command's own options. Everything is computed when it is first asked for, and once."""

    plugins: PluginManager
    layers: Sequence[Layer]
    own: Section[Any] | None = None

    @cached_property
    def sections(self) -> list[Section[Any] | LoadSettings]:
        """The sections of the options. Raises UsageError if two of them claim one option."""
        try:
            selection = self._usable
        except UsageError:  # reported where the model is opened, once the line has been parsed
            selection = self._selection
        common = [_SELECT, self.own] if self.own else [_SELECT]
        selections = [selection, self.own.read(self.layers)] if self.own else [selection]
        composed = compose_selected(self.plugins, selections, common)
        sections: list[Section[Any] | LoadSettings] = [*composed, self._settings]
        check_owners(o for section in sections for o in section.options)
        return sections

    @cached_property
    def options(self) -> tuple[Option, ...]:
        """The options of all sections."""
        return tuple(o for section in self.sections for o in section.options)

    @cached_property
    def inference(self) -> Inference:
        """How a model is opened. Raises UsageError for an unknown or ill-typed value, and for a backend or engine that cannot
        be used here."""
        selection = self._usable
        check_keys(self.plugins, self.options, self.layers)
        spec = self.plugins.get(EngineSpec, selection.engine)
        return Inference(
            backend=selection.backend, dtype=selection.dtype, engine=spec.name,
            engine_config=section_of(spec).read(self.layers) if spec.config else None,
            changes=self._settings.changes,
            parts={s.name: s.read(self.layers) for s in self.sections if isinstance(s, Section) and s.name.startswith(_USED)},
        )  # fmt: skip

    @cached_property
    def _settings(self) -> LoadSettings:
        return LoadSettings(self.plugins, self.layers)

    @cached_property
    def _selection(self) -> InferenceSelection:
        return _SELECT.read(self.layers)

    @cached_property
    def _usable(self) -> InferenceSelection:
        """The selection with a backend and an engine that can be used here."""
        backend, _ = choose_backend(self.plugins, self._selection.backend)
        engine = choose_engine(self.plugins, backend, self._selection.engine).name
        return attrs.evolve(self._selection, backend=backend, engine=engine)


def changed(spec: ArchitectureSpec, config: ArchitectureConfig, changes: Mapping[str, Any]) -> ArchitectureConfig:
    """A model's config with some of its settings changed on loading, by its `loaded_with`. Raises UsageError for a setting
    that this architecture does not have, or a value that it refuses."""
    if not changes:
        return config
    options = {o.field: o for o in options_of(spec.config, section=_MODEL) if o.info.on_load}
    for name in changes.keys() - options.keys():
        raise UsageError(f"--{name.replace('_', '-')}: a model of architecture {spec.name!r} has no such setting on loading.")
    try:
        return config.loaded_with(**changes)
    except ValueError as error:
        raise refusal(error, options.values(), ", ".join(options[name].flag for name in changes)) from None
