"""From layers of values to one frozen Run: compose the selected parts' options, merge, check, build."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import attrs

from mm.core.config.sections import PREFIXED, Section, compose_selected, section_of
from mm.core.errors import UsageError, close_match
from mm.core.layers import ENVIRONMENT, Layer, merge
from mm.core.options import Option, build, options_of
from mm.core.plugins import PluginManager
from mm.core.records import AdapterSpec, AlgorithmSpec, ArchitectureSpec, Needs
from mm.core.run import Run
from mm.core.settings import COMMON, EpisodeParts, RoleSettings, RolloutParts, Selection, TrainedRoleSettings
from mm.core.spec import Spec


@attrs.frozen(kw_only=True)
class Resolved:
    """A run, the origin of each of its values, and warnings to print."""

    run: Run
    sources: Mapping[str, str]
    warnings: tuple[str, ...] = ()


def select(layers: Sequence[Layer], plugins: PluginManager | None = None) -> Selection:
    """The selection that the layers (highest first) make; unknown keys are left for `resolve` to judge.

    With `plugins`, what the algorithm's defaults select counts too (an adapter, say).
    """
    found: Selection = read_config(Selection, layers, "select")
    if plugins is None or not found.algo:
        return found
    return read_config(Selection, [*layers, _defaults(plugins, found)], "select")  # type: ignore[no-any-return]


def selectors(*keys: str) -> list[Option]:
    """The options that name parts: all of them, or those of these keys."""
    found = [*options_of(Selection, section="select"), *options_of(EpisodeParts, section="rollout")]
    return [option for option in found if not keys or option.key in keys]


def read_config(config: type, layers: Sequence[Layer], section: str) -> Any:
    """An instance of one config class from the layers' bare values; keys of others are left alone."""
    return Section(name=section, config=config).read(layers)


def backend_name(text: str) -> tuple[str, int | None]:
    """`"cuda:1"` as ("cuda", 1). Raises UsageError when the card is not a number."""
    name, colon, card = text.partition(":")
    if colon and not card.isdigit():
        raise UsageError(f"--backend {text}: expected NAME or NAME:CARD with a card's number.")
    return name, int(card) if colon else None


def needs_from(plugins: PluginManager, layers: Sequence[Layer]) -> Needs | None:
    """What the selected algorithm needs with the settings that the layers give it; None without an algorithm."""
    algo = select(layers).algo
    if not algo:
        return None
    spec = plugins.get(AlgorithmSpec, algo)
    return spec.needs(read_config(spec.config, [*layers, _defaults(plugins, select(layers))], spec.name) if spec.config else None)


def compose(plugins: PluginManager, layers: Sequence[Layer]) -> list[Section]:
    """The sections of a training that the layers select, with those of the roles and parts that its algorithm needs.

    Raises UsageError when two of them claim one option.
    """
    common, selections = [*COMMON], [select(layers, plugins)]
    needs = needs_from(plugins, layers)
    if needs is not None and needs.generates:
        parts = EpisodeParts if needs.tools else RolloutParts
        common.append(("rollout", parts))
        selections.append(read_config(parts, [*layers, _defaults(plugins, selections[0])], "rollout"))
    roles = _role_sections(needs) if needs is not None else {}
    adapters = _adapter_sections(plugins, roles, [*layers, *([_defaults(plugins, selections[0])] if roles else [])])
    return compose_selected(plugins, selections, common, [*roles.values(), *adapters])


def role_selectors(plugins: PluginManager, layers: Sequence[Layer]) -> list[Option]:
    """The options that name parts of the roles beside the policy."""
    needs = needs_from(plugins, layers)
    roles = _role_sections(needs) if needs is not None else {}
    return [option for section in roles.values() for option in section.options if option.field == "adapter"]


def _role_sections(needs: Needs) -> dict[str, Section]:
    config = {role: TrainedRoleSettings if role in needs.trainable else RoleSettings for role in needs.roles if role != "policy"}
    return {role: Section(name=f"role.{role}", config=config[role], prefix=role) for role in config}


def _adapter_sections(plugins: PluginManager, roles: Mapping[str, Section], layers: Sequence[Layer]) -> Iterator[Section]:
    for role, section in roles.items():
        settings = section.read(layers)
        name = settings.adapter if isinstance(settings, TrainedRoleSettings) else ""
        if name and (spec := plugins.get(AdapterSpec, name)).config:
            yield section_of(spec, role)


def resolve(plugins: PluginManager, layers: Sequence[Layer]) -> Resolved:
    """The run that the layers (highest first) describe, on top of the algorithm's defaults, the preset and the classes.

    Raises UsageError for an unknown, foreign or ill-typed value, naming the option, its origin and what is near.
    """
    selection = select(layers)
    sections = compose(plugins, layers)
    options = [option for section in sections for option in section.options]
    warnings = check_keys(plugins, options, layers, selection)
    values, sources = merge([*layers, *_default_layers(plugins, selection)], options)
    built = {s.name: build(s.config, s.options, values) for s in sections}
    run = Run(select=built.pop("select"), train=built.pop("train"), parts=built, options=tuple(options))
    return Resolved(run=run, sources=sources, warnings=tuple(warnings))


def check_values(plugins: PluginManager, layers: Sequence[Layer]) -> None:
    """Raise UsageError for an ill-typed or refused value, so that it is heard of before anything that is missing."""
    for section in compose(plugins, layers):
        values, _ = merge(layers, section.options)
        if not section.prefix:  # a preset may yet add sizes to the others
            build(section.config, section.options, values)


def check_keys(
    plugins: PluginManager, options: Iterable[Option], layers: Sequence[Layer], selection: Any
) -> list[str]:
    """Raise UsageError for a key that no selected part has; answer warnings for lenient layers' foreign keys."""
    known = {o.key for o in options}
    warnings = []
    for layer in layers:
        for key in layer.values:
            if key in known:
                continue
            message, foreign = unknown_option(plugins, key, known, selection)
            if not (layer.lenient and foreign):
                raise UsageError(f"{message} (from {layer.origin})")
            warnings.append(f"{ENVIRONMENT}{key.upper()} is not used: {message}")
    return warnings


def unknown_option(plugins: PluginManager, key: str, known: Iterable[str], selection: Any) -> tuple[str, bool]:
    """The message for an unknown flat key, and whether another part of the installation has it."""
    flag = "--" + key.replace("_", "-")
    owners = [s for s in _all_with_config(plugins) if any(o.key == key for o in section_of(s).options)]
    if owners:
        names = ", ".join(f"{s.kind} {s.name!r}" for s in owners)
        algo = getattr(selection, "algo", "")
        using = f"; this run uses algorithm {algo!r}" if algo else ""
        return f"{flag} is an option of {names}{using}.", True
    algo = getattr(selection, "algo", "") or ""
    bare = key.removeprefix(f"{algo.replace('-', '_')}_")
    if bare != key and bare in known:
        own = "--" + bare.replace("_", "-")
        return f"No such option: {flag}. An algorithm's options are bare: {own}, in a file {bare} above all tables.", False
    near = close_match(flag, ["--" + k.replace("_", "-") for k in known])
    return f"No such option: {flag}.{near}", False


def _default_layers(plugins: PluginManager, selection: Selection) -> list[Layer]:
    layers = []
    if selection.algo:
        layers.append(_defaults(plugins, selection))
    if selection.arch:
        layers.append(_preset_layer(plugins, selection))
    elif selection.preset:
        raise UsageError(f"--preset {selection.preset} needs --arch; with --from the model has its sizes already.")
    return layers


def _defaults(plugins: PluginManager, selection: Selection) -> Layer:
    spec = plugins.get(AlgorithmSpec, selection.algo)
    return Layer(origin=f"defaults of {spec.name}", values=spec.defaults)


def _preset_layer(plugins: PluginManager, selection: Selection) -> Layer:
    spec = plugins.get(ArchitectureSpec, selection.arch)
    if selection.preset and selection.preset not in spec.presets:
        near = close_match(selection.preset, spec.presets)
        known = ", ".join(spec.presets)
        raise UsageError(f"Architecture {spec.name!r} has no preset {selection.preset!r}.{near} Known: {known}.")
    sizes = spec.presets.get(selection.preset, {})
    prefix = spec.name.replace("-", "_")
    return Layer(origin=f"preset {selection.preset}", values={f"{prefix}_{k}": v for k, v in sizes.items()})


def _all_with_config(plugins: PluginManager) -> list[Spec]:
    records: tuple[type[Spec], ...] = (AlgorithmSpec, *(record for record, _ in PREFIXED))
    return [spec for record in records for spec in plugins.specs(record) if spec.config]
