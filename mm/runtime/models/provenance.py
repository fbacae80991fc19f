"""The packages that a run's parts came from, and what to say when one of them is not installed any more. Imports no torch."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from mm.core.config.sections import selected_parts
from mm.core.errors import UnknownPart, UsageError
from mm.core.plugins import PluginManager
from mm.core.records import AlgorithmSpec, ArchitectureSpec
from mm.core.run import Run
from mm.core.run_folder import RunFolder
from mm.core.say import command_line

# the parts without which the model of a finished run cannot be read
_OF_A_MODEL = ("architecture", "adapter")


def packages_of(plugins: PluginManager, run: Run, architecture: str) -> dict[str, str]:
    """`kind.name` of each part that a run uses -> its distribution; the path or module of a plugin that `-p` names."""
    selections = [run.select, *(value for name, value in run.parts.items() if name == "rollout" or name.startswith("role."))]
    specs = [plugins.get(AlgorithmSpec, run.select.algo), plugins.get(ArchitectureSpec, architecture)]
    specs += [spec for selection in selections for spec in selected_parts(plugins, selection)]
    return {f"{spec.kind}.{spec.name}": plugins.owner(spec).distribution for spec in specs}


@contextmanager
def naming_package(plugins: PluginManager, run: RunFolder | None) -> Iterator[None]:
    """Extend the error about an unknown part that a run was made with: by its package and version, and how to get it back."""
    try:
        yield
    except UnknownPart as error:
        missing = _missing(plugins, run, error.part) if run and not run.damage else ""
        if not missing:
            raise
        raise UsageError(missing) from None


def missing_packages(plugins: PluginManager, runs: Sequence[RunFolder]) -> list[str]:
    """A line for each package that is not installed and that the runs need: to read their model or, if they are not finished, to
    be resumed."""
    needed: dict[str, dict[str, list[str]]] = {}
    for run in runs:
        manifest = {} if run.damage else run.manifest
        for part, package in manifest.get("parts", {}).items():
            kind, _, name = part.partition(".")
            if (kind in _OF_A_MODEL or manifest["state"] != "finished") and not _is_loaded(plugins, package):
                line = ": ".join(_absent(package, manifest))
                needed.setdefault(line, {}).setdefault(f"{kind} {name!r}", []).append(run.name)
    return [
        f"{line}. It has {'; '.join(f'{part} of {_shown(names)}' for part, names in parts.items())}."
        for line, parts in needed.items()
    ]


def _shown(names: Sequence[str]) -> str:
    return f"run{'s' * (len(names) > 1)} {', '.join(names[:3])}" + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _missing(plugins: PluginManager, run: RunFolder, part: str) -> str:
    """The message about a part of a run that no plugin has now; "" if the run does not say where it came from."""
    manifest, (kind, _, name) = run.manifest, part.partition(".")
    package = manifest.get("parts", {}).get(part)
    # a run of an older version says only which packages were installed
    packages = [package] if package else [p for p in manifest.get("plugins", {}) if not _is_loaded(plugins, p)]
    head = f"Run {run.name} needs {kind} {name!r}"
    if package and _is_loaded(plugins, package):
        return f"{head} of {package}, {_fault(plugins, part, package, manifest)}"
    absent = [": ".join(_absent(package, manifest)) for package in packages]
    return f"{head}, and {' or '.join(absent)}." if absent else ""


def _fault(plugins: PluginManager, part: str, package: str, manifest: Mapping[str, Any]) -> str:
    """Why a package that is installed has no such part: it is blocked, broken, or another version."""
    owners = [p for p in plugins.plugins if p.distribution == package]
    if block := next((b for p in owners for b in p.blocked.values() if part in p.blocked or not p.records), ""):
        return f"which is blocked by {block}: take that out of -p or MM_PLUGINS."
    if broken := next((p for p in owners if p.state == "broken"), None):
        return f"which is broken: {command_line('plugins', broken.name)} shows why."
    before = manifest["plugins"].get(package, "")
    again = f" Return to {before}: pip install {package}=={before}" if before != owners[0].version else ""
    return f"whose version {owners[0].version or package} has no such part.{again}"


def _absent(package: str, manifest: Mapping[str, Any]) -> tuple[str, str]:
    """`mm-example 0.1.0 is not installed` and `pip install mm-example==0.1.0`; a file or module is given with `-p` instead."""
    version = manifest.get("plugins", {}).get(package, "")
    if not version:
        return f"{package} is not loaded", shlex.join(["-p", package])
    return f"{package} {version} is not installed", f"pip install {package}=={version}"


def _is_loaded(plugins: PluginManager, package: str) -> bool:
    return any(plugin.distribution == package for plugin in plugins.plugins)
