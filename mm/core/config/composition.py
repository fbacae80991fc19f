"""The composition of a training: the parts and options that layers of values select, and the run that they describe."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import attrs

from mm.core.config.sections import Section, compose_selected, section_of
from mm.core.config.unknown import check_keys
from mm.core.errors import UsageError, close_match
from mm.core.layers import Layer, merge
from mm.core.options import C, Option, build
from mm.core.plugins import PluginManager
from mm.core.records import AdapterSpec, AlgorithmSpec, ArchitectureSpec, Needs
from mm.core.run import Run
from mm.core.settings import EpisodeParts, RoleSettings, RolloutParts, Selection, TrainedRoleSettings, TrainSettings

SELECT = Section(name="select", config=Selection)
TRAIN = Section(name="train", config=TrainSettings)
_ALGO = [SELECT.option("algo")]


@attrs.frozen(kw_only=True)
class Resolved:
    """A run, the origin of each of its values, and warnings to print."""

    run: Run
    sources: Mapping[str, str]
    warnings: tuple[str, ...] = ()


@attrs.frozen(slots=False, eq=False)
class Composition:
    """The parts and settings of a training, from layers of values (highest first) above the algorithm's defaults, the preset
    and the classes.

    Everything is computed on first use, and once: a composition made from another one reuses the configs that were built from
    equal values. `chosen` holds values for selections that the layers leave open or set to `auto`, each with the line that
    reports it. Every attribute may raise UsageError, which names the option, its origin and the closest known names.
    """

    plugins: PluginManager
    layers: Sequence[Layer]
    chosen: Mapping[str, tuple[Any, str]] = attrs.field(factory=dict)
    _built: dict[object, Any] = attrs.field(factory=dict, repr=False)
    _merged: dict[Section[Any], tuple[dict[str, Any], dict[str, str]]] = attrs.field(factory=dict, init=False, repr=False)

    def having(self, layers: Sequence[Layer]) -> Composition:
        """Another composition, of these layers."""
        return attrs.evolve(self, layers=layers)

    def choosing(self, chosen: Mapping[str, tuple[Any, str]]) -> Composition:
        """Another composition, with further values chosen for the user."""
        return attrs.evolve(self, chosen={**self.chosen, **chosen})

    def read(self, section: Section[C]) -> C:
        """An instance of a section's config."""
        values, _ = self._merge(section)
        return self._once((section, repr(values)), lambda: build(section.config, section.options, values))

    def default(self, option: Option) -> Any:
        """The value of an option that no layer gives and nobody chooses: the algorithm's, the preset's, or the class's."""
        below = next((self._defaults(section) for section in self.sections if option in section.options), [])
        return merge(below, [option])[0].get(option.key, option.default)

    @cached_property
    def algorithm(self) -> AlgorithmSpec | None:
        """The record of the selected algorithm, or None."""
        name = merge(self.layers, _ALGO)[0].get("algo")
        return self.plugins.get(AlgorithmSpec, name) if name else None

    @cached_property
    def selection(self) -> Selection:
        """The selected parts."""
        return self.read(SELECT)

    @cached_property
    def needs(self) -> Needs | None:
        """The needs of the algorithm with the settings that it is given, or None without an algorithm."""
        if (spec := self.algorithm) is None:
            return None
        config = self.read(section_of(spec)) if spec.config else None
        return self._once((spec.name, id(config)), lambda: spec.needs(config))

    @cached_property
    def rollout(self) -> RolloutParts | None:
        """The parts of a run that draws completions, or None."""
        return self.read(section) if (section := self._rollout_section) else None

    @cached_property
    def sections(self) -> list[Section[Any]]:
        """The sections of the options, with those of the roles and parts that the algorithm needs."""
        roles = list(self._roles())
        rollout = [self._rollout_section] if self._rollout_section else []
        common: list[Section[Any]] = [SELECT, TRAIN, *rollout, *roles, *self._adapters(roles)]
        return compose_selected(self.plugins, [self.selection, self.read(TRAIN), *([self.rollout] if rollout else [])], common)

    @cached_property
    def options(self) -> tuple[Option, ...]:
        """The options of all sections."""
        return tuple(option for section in self.sections for option in section.options)

    def required(self) -> tuple[AlgorithmSpec, Needs]:
        """The algorithm and its needs. Raises UsageError if none is selected."""
        if self.algorithm is None or self.needs is None:
            known = ", ".join(spec.name for spec in self.plugins.specs(AlgorithmSpec))
            raise UsageError(f"Missing option --algo. Known: {known}.")
        return self.algorithm, self.needs

    def check(self) -> None:
        """Raise UsageError for an ill-typed or refused value, so that it is reported before anything that is missing."""
        for section in self.sections:
            self._merge(section)
            if not section.prefix:  # a preset that is not chosen yet may add sizes to the others
                self.read(section)

    def resolve(self) -> Resolved:
        """The run. Raises UsageError for a value that is unknown, ill-typed, refused or missing."""
        spec, needs = self.required()
        warnings = check_keys(self.plugins, self.options, self.layers, spec.name)
        if self.selection.preset and not self.selection.arch:
            raise UsageError(f"--preset {self.selection.preset} needs --arch; the model of --from has its sizes: leave it out.")
        parts = {section.name: self.read(section) for section in self.sections}
        sources = {key: origin for section in self.sections for key, origin in self._merge(section)[1].items()}
        run = Run(select=parts.pop("select"), train=parts.pop("train"), parts=parts, options=self.options, needs=needs)
        return Resolved(run=run, sources=sources, warnings=tuple(warnings))

    def _once(self, key: object, make: Callable[[], C]) -> C:
        if key not in self._built:
            self._built[key] = make()
        return self._built[key]  # type: ignore[no-any-return]

    def _merge(self, section: Section[Any]) -> tuple[dict[str, Any], dict[str, str]]:
        """The values that a section's options are given, by flat key, and the origin of each of its options."""
        if section not in self._merged:
            layers = [Layer(origin="chosen", values={key: value for key, (value, _) in self.chosen.items()}), *self.layers]
            self._merged[section] = merge([*layers, *self._defaults(section)], section.options)
        return self._merged[section]

    def _defaults(self, section: Section[Any]) -> list[Layer]:
        """The layers below the user's: the algorithm's defaults and, for an architecture, the sizes of the preset."""
        layers = [Layer(origin=f"defaults of {spec.name}", values=spec.defaults)] if (spec := self.algorithm) else []
        return [*layers, self._sizes()] if section.name.startswith("architecture.") else layers

    def _sizes(self) -> Layer:
        """The sizes of the preset, as a layer."""
        spec, preset = self.plugins.get(ArchitectureSpec, self.selection.arch), self.selection.preset
        if preset and preset not in spec.presets:
            near, known = close_match(preset, spec.presets), ", ".join(spec.presets)
            raise UsageError(f"Architecture {spec.name!r} has no preset {preset!r}.{near} Known: {known}.")
        prefix, sizes = spec.name.replace("-", "_"), spec.presets.get(preset, {})
        return Layer(origin=f"preset {preset}", values={f"{prefix}_{key}": value for key, value in sizes.items()})

    @property
    def _rollout_section(self) -> Section[Any] | None:
        if self.needs is None or not self.needs.generates:
            return None
        return Section(name="rollout", config=EpisodeParts if self.needs.tools else RolloutParts)

    def _roles(self) -> Iterator[Section[Any]]:
        """The sections of the roles beside the policy."""
        if needs := self.needs:
            for role in needs.roles:
                if role != "policy":
                    config = TrainedRoleSettings if role in needs.trainable else RoleSettings
                    yield Section(name=f"role.{role}", config=config, prefix=role)

    def _adapters(self, roles: Sequence[Section[Any]]) -> Iterator[Section[Any]]:
        """The sections of the adapters of these roles."""
        for role in roles:
            if role.config is TrainedRoleSettings and (name := self.read(role).adapter):
                spec = self.plugins.get(AdapterSpec, name)
                if spec.config:
                    yield section_of(spec, role.prefix)
