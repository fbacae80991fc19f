"""The description of a part: its record and its options, or the reason why it is not available."""

from __future__ import annotations

import typing
from collections.abc import Iterable, Mapping
from typing import Any

import attrs

from mm.core.config.autoselect import probe_of
from mm.core.config.sections import section_of
from mm.core.configs import ArchitectureConfig
from mm.core.errors import UsageError
from mm.core.options import Option
from mm.core.plugins import Plugin, PluginManager
from mm.core.records import AlgorithmSpec, ArchitectureSpec, BackendSpec, Container, RecipeSpec
from mm.core.spec import Spec
from mm.plugins.commands.plugins.listing import (
    CALLBACKS,
    CALLBACKS_SUMMARY,
    active,
    as_table,
    callback_name,
    callback_names,
    conflict_of,
    find,
    names_of,
    part_names,
    rows_of,
    unknown_message,
    watching,
)
from mm.runtime.devices.container import ContainerRun, run_command, shell_lines
from mm.runtime.runs.recipes import tables_of

_SHOWN = ("name", "summary", "config")


def describe(manager: PluginManager, name: str) -> str:
    """The description of every part and plugin of that name, and the list of a package's. Raises UsageError if there is none."""
    texts = []
    for plugin in manager.plugins:
        texts += [_part(manager, plugin, spec) for spec in plugin.records if name in names_of(plugin, spec)]
        texts += [
            _lines(f"{part} is blocked by {block}.", _origin(plugin))
            for part, block in plugin.blocked.items()
            if name in part_names(plugin, part)
        ]
        if plugin.state == "broken" and name in part_names(plugin, plugin.entry):
            texts.append(_lines(f"{plugin.name} is broken.", _origin(plugin)) + f"\n\n{plugin.error.strip()}")
        elif CALLBACKS in plugin.hooks and name in callback_names(plugin):
            texts.append(_lines(f"callback {callback_name(plugin)}: {CALLBACKS_SUMMARY}", _origin(plugin)))
        elif plugin.state == "active" and not plugin.records and not plugin.blocked and name in part_names(plugin, plugin.entry):
            texts.append(_lines(f"{plugin.name} provides no part.", _origin(plugin)))
    if listed := rows_of(manager, name):
        of = next(plugin for plugin in manager.plugins if plugin.name == listed[0].plugin)
        texts.append(f"{of.distribution} {of.version}\n\n{as_table(listed)}")
    if not texts:
        raise UsageError(unknown_message(manager, name))
    return "\n\n".join(texts)


def values_of(manager: PluginManager, name: str) -> list[dict[str, Any]]:
    """The active parts of that name or package with their options, and its callbacks, as JSON values. Raises UsageError if there
    is none."""
    watchers = watching(manager, name)
    callbacks = [
        {"kind": "callback", "name": callback_name(p), "summary": CALLBACKS_SUMMARY, **_origin(p), "conflict": "", "options": []}
        for p in watchers
    ]
    parts = [
        {
            "kind": spec.kind, "name": spec.name, "summary": spec.summary, **_origin(plugin),
            "conflict": conflict_of(manager, plugin, spec),
            "options": [
                {"flag": option.flag, "help": option.info.help, "default": _json(option.default), "choices": option.info.choices}
                for option in (section_of(spec).options if spec.config else ())
            ],
        }
        for plugin, spec in (active if watchers else find)(manager, name)
    ]  # fmt: skip
    return parts + callbacks


def _json(value: Any) -> Any:
    return None if value is attrs.NOTHING else value


def _part(manager: PluginManager, plugin: Plugin, spec: Spec) -> str:
    fields = [f.name for f in attrs.fields(type(spec)) if f.name not in _SHOWN]
    facts = _origin(plugin) | {"conflict": conflict_of(manager, plugin, spec)}
    facts |= {name: _fact(spec, name) for name in fields if getattr(spec, name) not in ((), {}, "", None)}
    told = {name: fact for name, fact in facts.items() if fact}
    text = _lines(f"{spec.kind} {spec.name}: {spec.summary}", told)
    options = section_of(spec).options if spec.config else ()
    return text + ("\n\nOptions:\n" + "\n".join(_option(o) for o in options) if options else "")


def _origin(plugin: Plugin) -> dict[str, str]:
    return {
        "plugin": f"{plugin.name} ({plugin.value})",
        "distribution": f"{plugin.distribution} {plugin.version}".strip(),
        "hooks": ", ".join(plugin.hooks),
    }


def _fact(spec: Spec, name: str) -> str:
    value = getattr(spec, name)
    if isinstance(spec, BackendSpec) and name == "probe":
        probe = probe_of(spec)
        return f"{'can run here' if probe.available else 'cannot run here'}: {probe.reason}"
    if isinstance(value, Container):
        return _docker_run(value)
    if isinstance(spec, AlgorithmSpec) and name == "needs":
        needs = spec.needs(spec.config() if spec.config else None)
        return f"{needs.data} rows; roles {', '.join(needs.roles)}; trains {', '.join(needs.trainable)}"
    if isinstance(spec, ArchitectureSpec) and name == "presets":
        return ", ".join(f"{preset} ({size_of(spec.config(**sizes))})" for preset, sizes in spec.presets.items())
    if isinstance(spec, RecipeSpec) and name == "target":
        return f"{value}, with the tables {', '.join(tables_of(spec))}"
    return "" if callable(value) else _plain(value)  # a function's name tells its author alone something


def _docker_run(container: Container) -> str:
    """A command that can be pasted into a shell, of several lines; "" for a chip that needs none."""
    if container == Container():
        return ""
    return shell_lines(run_command(container, ContainerRun(image="IMAGE", interactive=True)))


def size_of(config: ArchitectureConfig) -> str:
    """`25.83M`, and the parameters that a token passes if these are fewer."""
    total, active = config.num_parameters(), config.num_active_parameters()
    return f"{total / 1e6:.4g}M" + (f", {active / 1e6:.4g}M of them active" if active < total else "")


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{k}={_plain(v)}" for k, v in value.items())
    if attrs.has(type(value)):
        return "; ".join(f"{k} {_plain(v)}" for k, v in attrs.asdict(value).items() if v)
    if isinstance(value, tuple):
        return ", ".join(str(item) for item in value)
    return f"{value.__module__}:{value.__qualname__}" if callable(value) else str(value)


def _option(option: Option) -> str:
    kind = option.base_type
    name = f"{typing.get_args(kind)[0].__name__}..." if typing.get_origin(kind) is tuple else kind.__name__
    values = f" ({' | '.join(option.info.choices)})" if option.info.choices else ""
    default = "required" if option.default is attrs.NOTHING else f"default {option.default!r}"
    return f"  {option.flag} {name.upper()}{values}, {default}\n      {option.info.help}"


def _lines(title: str, facts: Mapping[str, str]) -> str:
    width = max(len(name) for name in facts)
    lines: Iterable[str] = (f"  {name:<{width}}  {value}" for name, value in facts.items() if value)
    return "\n".join((title, *lines))
