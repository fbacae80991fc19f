"""The plugin manager: finds plugins through entry points, isolates each, and looks parts up by record class and name.

A manager is an object that the command line or the API makes; there is no global one.
"""

from __future__ import annotations

import os
import shlex
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import metadata
from types import ModuleType
from typing import Any, Literal, TypeVar

import attrs
import pluggy

from mm.core import hooks
from mm.core.discovery import check_hooks, entry_points, import_plugin, is_path, matches, new_module_path
from mm.core.errors import ConflictingParts, MMError, Signalled, UnknownPart, UsageError, close_match
from mm.core.records import RECORDS
from mm.core.say import command_line
from mm.core.spec import Spec

S = TypeVar("S", bound=Spec)


@attrs.define
class Plugin:
    """One plugin: `name` is `distribution:kind.name` for an entry point and the path for `-p ./file.py`.

    `hooks` are the names of the hooks that it implements. `blocked` maps the `kind.name` of each blocked part to the option
    that blocks it. `error` is the traceback of a broken plugin.
    """

    name: str
    value: str
    distribution: str = ""
    version: str = ""
    state: Literal["active", "blocked", "broken"] = "active"
    records: tuple[Spec, ...] = ()
    hooks: tuple[str, ...] = ()
    blocked: dict[str, str] = attrs.field(factory=dict)
    error: str = ""

    @property
    def entry(self) -> str:
        """The name within its distribution: `kind.name`."""
        return self.name.rpartition(":")[2]

    @property
    def reason(self) -> str:
        """The last line of the error."""
        return self.error.strip().rpartition("\n")[2]


class PluginManager:
    """The plugins of one process. `options` are `-p` values: `no:NAME`, a path to a .py file, or a module name."""

    def __init__(self, options: Sequence[str] = (), *, strict: bool = False) -> None:
        self.options = tuple(os.path.abspath(o) if is_path(o) else o for o in options)
        self.strict = strict
        self.plugins: list[Plugin] = []
        self._blocks = dict.fromkeys((o.removeprefix("no:") for o in options if o.startswith("no:")), False)
        self._pluggy = pluggy.PluginManager("mm")
        self._pluggy.add_hookspecs(hooks)

    @classmethod
    def discover(cls, options: Sequence[str] = (), environ: Mapping[str, str] | None = None) -> PluginManager:
        """All installed plugins and those named by `options` and `MM_PLUGINS` (comma-separated).

        Raises UsageError for an option that matches nothing, and, with MM_PLUGINS_STRICT=1, for a broken plugin.
        """
        environ = os.environ if environ is None else environ
        from_env = [o.strip() for o in environ.get("MM_PLUGINS", "").split(",") if o.strip()]
        manager = cls([*from_env, *options], strict=environ.get("MM_PLUGINS_STRICT", "") not in ("", "0"))
        for entry, name, version in entry_points():
            manager._add_entry_point(entry, name, version)
        installed = {plugin.value for plugin in manager.plugins}
        for name in dict.fromkeys(manager.options):
            if not name.startswith("no:") and name not in installed:
                manager._add(Plugin(name=name, value=name, distribution=name))
        manager._check_blocks()
        manager.check_strict()
        return manager

    # ---- looking parts up, by their record class: `get(AlgorithmSpec, "sft")`

    def specs(self, record: type[S]) -> list[S]:
        """The usable records of a class, by name; a name that two distributions claim appears once."""
        found: dict[str, S] = {}
        for _, spec in self.owned(record):
            found.setdefault(spec.name, spec)
        return [found[name] for name in sorted(found)]

    def get(self, record: type[S], name: str, text: str = "") -> S:
        """The record of that class and name, which the user gave as `text`.

        Raises UsageError when it is unknown (with close matches), blocked, broken, or claimed twice (with the deciding option).
        """
        owned = [(plugin, spec) for plugin, spec in self.owned(record) if spec.name == name]
        if len(owned) > 1:
            raise ConflictingParts(self._conflict([plugin for plugin, _ in owned], f"{record.kind}.{name}"))
        if not owned:
            raise UnknownPart(self._unknown(record, name, text or name), f"{record.kind}.{name}")
        return owned[0][1]

    def load(self, record: type[Spec], name: str) -> Any:
        """The implementation of a part. An error while importing it gains a note that names the plugin."""
        spec = self.get(record, name)
        try:
            return spec.load()
        except MMError:
            raise
        except Exception as error:
            error.add_note(f"while importing {spec.target} of plugin {self.owner(spec).name}")
            if cure := new_module_path(error):
                error.add_note(cure)
            raise

    def owner(self, spec: Spec) -> Plugin:
        """The plugin that yielded this record."""
        return next(p for p in self.plugins if any(r is spec for r in p.records))

    def cure(self, plugin: Plugin, part: str) -> str:
        """The option that leaves out a plugin's `kind.name` and no other's, and as little else as possible; "" without one."""
        others = [p for p in self.plugins if p is not plugin and any(f"{r.kind}.{r.name}" == part for r in p.records)]
        for block in (f"{plugin.distribution}:{part}", plugin.name):
            if not any(matches(block, entry, p.distribution) for p in others for entry in (part, p.entry)):
                return shlex.join(["-p", f"no:{block}"])
        return ""

    def implementations(self, hook: str) -> Iterator[tuple[Plugin, Callable[..., Any]]]:
        """(plugin, function) of each implementation of a hook. Called one at a time, so that it is known whose code raised."""
        for found in getattr(self._pluggy.hook, hook).get_hookimpls():
            function = found.function if found.argnames else lambda *arguments, f=found.function: f()
            yield next(p for p in self.plugins if p.name == found.plugin_name), function

    def versions(self) -> dict[str, str]:
        """distribution -> version of every plugin in use, for manifests and for comparing ranks."""
        return {p.distribution: p.version for p in self.plugins if p.state == "active" or p.records}

    def broken(self) -> list[Plugin]:
        """The plugins that failed, with their tracebacks."""
        return [p for p in self.plugins if p.state == "broken"]

    # ---- discovery

    def _add_entry_point(self, entry: metadata.EntryPoint, name: str, version: str) -> None:
        plugin = Plugin(name=f"{name}:{entry.name}", value=entry.value, distribution=name, version=version)
        if block := self._block(plugin.entry, name):
            plugin.state, plugin.blocked = "blocked", {plugin.entry: block}
            self.plugins.append(plugin)
            return
        self._add(plugin)

    def _add(self, plugin: Plugin) -> None:
        """Import, register and check one plugin, and collect its records. On any failure it is unregistered and marked broken."""
        self.plugins.append(plugin)
        try:
            module = import_plugin(plugin.value)
            self._pluggy.register(module, name=plugin.name)
            check_hooks(module)
            self._pluggy.check_pending()
            plugin.hooks = tuple(sorted(caller.name for caller in self._pluggy.get_hookcallers(module) or ()))
            plugin.records = tuple(self._ask(plugin, module))
        except KeyboardInterrupt as error:
            if not isinstance(error, Signalled):  # the plugin raised it
                error.add_note(f"while plugin {plugin.name} was imported")
            raise
        except (Exception, SystemExit) as error:
            if cure := new_module_path(error):
                error.add_note(cure)
            self._mark_broken(plugin, traceback.format_exc())

    def _ask(self, plugin: Plugin, module: ModuleType) -> Iterator[Spec]:
        seen: dict[str, Spec] = {}
        for record in RECORDS:
            caller = getattr(self._pluggy.hook, record.hook)
            for implementation in caller.get_hookimpls():
                if implementation.plugin is not module:
                    continue
                for spec in implementation.function():
                    if not isinstance(spec, record):
                        raise TypeError(f"{record.hook} yielded {spec!r}; expected a {record.__name__}")
                    part = f"{spec.kind}.{spec.name}"
                    if seen.setdefault(part, spec) is not spec:
                        raise ValueError(f"{record.hook} yielded two records called {spec.name!r}")
                    if block := self._block(part, plugin.distribution):
                        plugin.blocked[part] = block
                    else:
                        yield spec

    def _mark_broken(self, plugin: Plugin, error: str) -> None:
        plugin.state, plugin.error, plugin.records = "broken", error, ()
        if self._pluggy.has_plugin(plugin.name):
            self._pluggy.unregister(name=plugin.name)

    def owned(self, record: type[S]) -> Iterator[tuple[Plugin, S]]:
        """(plugin, record) of every usable record of a class, those that claim one name too."""
        for plugin in self.plugins:
            for spec in plugin.records:
                if isinstance(spec, record):
                    yield plugin, spec

    def _conflict(self, owners: list[Plugin], part: str) -> str:
        distributions = sorted({plugin.distribution for plugin in owners})
        names = distributions if len(distributions) == len(owners) else sorted(plugin.name for plugin in owners)
        cures = " or ".join(sorted(filter(None, (self.cure(plugin, part) for plugin in owners))))
        kind, _, name = part.partition(".")
        blocked = "one" if len(owners) == 2 else "all but one"
        return f"{kind} {name!r} is provided by {' and by '.join(names)}. Block {blocked} with {cures}."

    def _unknown(self, record: type[Spec], name: str, text: str) -> str:
        kind, known = record.kind, {spec.name: spec.summary for spec in self.specs(record)}
        if meant := next(filter(None, (spec.meant(text) for spec in self.specs(record))), ""):
            return f"Unknown {kind} {text!r}. Did you mean {meant}?"
        message = f"Unknown {kind} {name!r}.{close_match(name, known)} Known: {', '.join(known) or 'none'}."
        reasons = [[_why_not(p, f"{kind}.{name}", unseen, self.options) for p in self.plugins] for unseen in (False, True)]
        return message + ("".join(reasons[0]) or "".join(reasons[1]))

    def _block(self, part: str, distribution: str) -> str:
        """The first option that blocks a part, or "". Every block that matches is marked as used."""
        matching = [block for block in self._blocks if matches(block, part, distribution)]
        self._blocks.update(dict.fromkeys(matching, True))
        return f"no:{matching[0]}" if matching else ""

    def _check_blocks(self) -> None:
        for block, used in self._blocks.items():
            if not used:
                known = {n for p in self.plugins for n in (p.entry, p.distribution, p.entry.partition(".")[2])}
                raise UsageError(f"-p no:{block} matches no plugin.{close_match(block, known)}")

    def check_strict(self) -> None:
        """Raise UsageError for a broken plugin if MM_PLUGINS_STRICT is set."""
        for plugin in self.broken() if self.strict else ():
            raise UsageError(f"Plugin {plugin.name} is broken and MM_PLUGINS_STRICT is set:\n{plugin.error}")


def _why_not(plugin: Plugin, part: str, unseen: bool, options: Sequence[str]) -> str:
    """The sentence about a plugin that would give a part if it were not blocked or broken; "" for another plugin. `unseen`: of
    one that was not imported, and may have any part, since entry points are named after their parts by convention only."""
    unseen = unseen and not plugin.records and not plugin.value.startswith("mm.")
    if plugin.state == "broken" and (unseen or plugin.entry == part):
        return f" Plugin {plugin.name} is broken: see '{command_line('plugins', plugin.name, plugins=options)}'."
    if block := plugin.blocked.get(part) or (unseen and plugin.blocked.get(plugin.entry)):
        blocked = f"it, and it is blocked by {block}: take that out of -p or MM_PLUGINS to use it."
        return f" Plugin {plugin.name} {'may have' if unseen else 'has'} {blocked}"
    return ""
