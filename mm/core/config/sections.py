"""The options of selected parts, in sections: one for the common settings, one for the algorithm, one for each other part."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Generic

import attrs

from mm.core.errors import UsageError
from mm.core.layers import Layer, merge
from mm.core.options import C, Option, build, options_of
from mm.core.plugins import PluginManager
from mm.core.records import (
    AdapterSpec,
    AlgorithmSpec,
    ArchitectureSpec,
    BackendSpec,
    EngineSpec,
    RewardSpec,
    SourceSpec,
    ToolSpec,
    TrackerSpec,
)
from mm.core.spec import Spec

# kinds of parts whose options have a prefix, each with the field of a selection that names the part
PREFIXED: tuple[tuple[type[Spec], str], ...] = (
    (ArchitectureSpec, "arch"), (BackendSpec, "backend"), (AdapterSpec, "adapter"), (EngineSpec, "engine"),
    (RewardSpec, "reward"), (ToolSpec, "tool"), (TrackerSpec, "tracker"),
)  # fmt: skip


def part_name(locator: str) -> str:
    """The part's name in `NAME` or `NAME:DETAIL` (a backend's card, a reward's weight)."""
    return locator.partition(":")[0]


def selected_parts(plugins: PluginManager, selection: Any) -> Iterator[Spec]:
    """The records of the selected parts whose options are prefixed, and those of the sources of its data that have options.
    Raises UsageError for an unknown name, and for a part that is selected twice."""
    for record, field in PREFIXED:
        chosen = getattr(selection, field, "")
        first: dict[str, str] = {}
        for locator in chosen if isinstance(chosen, tuple) else (chosen,):
            if locator in ("", "auto") or (field, locator) == ("tracker", "none"):
                continue
            spec = plugins.get(record, part_name(locator), locator)
            if spec.name in first:
                raise UsageError(f"--{field} {first[spec.name]} --{field} {locator}: {spec.name} is given twice; leave one out.")
            first[spec.name] = locator
            yield spec
    # a locator may have a weight at its end; several locators of one source share its section
    for locator in (*getattr(selection, "data", ()), *getattr(selection, "eval_data", ())):
        texts = (locator, locator.rpartition(":")[0])
        yield from (spec for spec in plugins.specs(SourceSpec) if spec.config and any(map(spec.recognise, texts)))


@attrs.frozen(kw_only=True)
class Section(Generic[C]):
    """One config class of a composed run. The names of its options begin with `prefix`."""

    name: str
    config: type[C]
    prefix: str = ""

    @property
    def options(self) -> tuple[Option, ...]:
        """The options of this section."""
        config: type = self.config
        return options_of(config, section=self.name, prefix=self.prefix)

    def option(self, key: str) -> Option:
        """The option of this flat key."""
        return next(option for option in self.options if option.key == key)

    def read(self, layers: Sequence[Layer]) -> C:
        """An instance of the config from the layers (highest first), which may have keys of others."""
        return build(self.config, self.options, merge(layers, self.options)[0])


def section_of(spec: Spec, role: str = "policy") -> Section[Any]:
    """The section of a part with a config. The options of an algorithm are bare, those of another part begin with its name,
    and those of a part of a role beside the policy with the role's name before that."""
    assert spec.config is not None
    name = spec.name if role == "policy" else f"{role}-{spec.name}"
    return Section(name=f"{spec.kind}.{name}", config=spec.config, prefix="" if spec.kind == "algorithm" else name)


def compose_selected(plugins: PluginManager, selections: Sequence[Any], common: Iterable[Section[Any]]) -> list[Section[Any]]:
    """The sections of a line: the common ones, then those of the parts that the selections name.

    The options of an algorithm are bare, those of every other part are prefixed with its name. A selection is a training's,
    or any other with some of its fields. Raises UsageError if two parts claim one option.
    """
    sections, parts = list(common), list[Spec]()
    for selection in selections:
        algo = getattr(selection, "algo", "")
        for spec in [*([plugins.get(AlgorithmSpec, algo)] if algo else []), *selected_parts(plugins, selection)]:
            parts += [spec] if spec.config and spec not in parts else []
    sections += map(section_of, parts)
    check_owners(option for section in sections for option in section.options)
    return sections


def check_owners(options: Iterable[Option]) -> None:
    """Raise UsageError if two sections claim one option."""
    owner: dict[str, str] = {}
    for option in options:
        if option.key in owner:
            raise UsageError(f"{option.flag} is claimed by both {owner[option.key]} and {option.section}.")
        owner[option.key] = option.section
