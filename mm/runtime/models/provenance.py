"""The packages that the parts of a run or of a model came from, and what to say when one of them is not installed any more.
Imports no torch."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mm.core.config.sections import selected_parts
from mm.core.discovery import is_path
from mm.core.errors import UnknownPart, UsageError
from mm.core.plugins import PluginManager
from mm.core.records import KINDS, AlgorithmSpec, ArchitectureSpec
from mm.core.run import Run
from mm.core.run_folder import RunFolder
from mm.core.say import command_line
from mm.core.spec import Spec
from mm.runtime.data.corpus import source_of
from mm.runtime.models.finding import plugin_options, resume_line, run_of

# the parts without which the model of a finished run cannot be read
_OF_A_MODEL = ("architecture", "adapter")


def packages_of(plugins: PluginManager, run: Run, architecture: str) -> dict[str, str]:
    """`kind.name` of each part that a run uses -> its distribution; the path or module of a plugin that `-p` names."""
    selections = [run.select, *(value for name, value in run.parts.items() if name == "rollout" or name.startswith("role."))]
    specs: list[Spec] = [plugins.get(AlgorithmSpec, run.select.algo), plugins.get(ArchitectureSpec, architecture)]
    specs += [spec for selection in selections for spec in selected_parts(plugins, selection)]
    specs += [source_of(plugins, locator)[0] for locator in (*run.select.data, *run.train.eval_data)]
    return {f"{spec.kind}.{spec.name}": plugins.owner(spec).distribution for spec in specs}


def package_of(plugins: PluginManager, spec: Spec) -> dict[str, dict[str, str]]:
    """`kind.name` of a part -> its package and version, to be kept in a model's config.json; empty for a part of mm. Of a file
    only the name is kept: the model may be read on another machine."""
    plugin = plugins.owner(spec)
    if plugin.value.startswith("mm."):
        return {}
    package = Path(plugin.distribution).name if is_path(plugin.distribution) else plugin.distribution
    return {f"{spec.kind}.{spec.name}": {"package": package, "version": plugin.version}}


@contextmanager
def naming_package(plugins: PluginManager, folder: Path, packages: Any = None) -> Iterator[None]:
    """Extend the error about an unknown part of the model in `folder`: by its package and version, and how to get it back. The
    run that the folder is part of names them, or else `packages`, the saved values of `package_of`."""
    try:
        yield
    except UnknownPart as error:
        run = run_of(folder)
        missing = _missing(plugins, f"Run {run.name}", run.manifest, [error.part]) if run and not run.damage else ""
        raise UsageError(missing or _of_a_copy(plugins, folder, packages, error)) from None


def check_parts(plugins: PluginManager, run: RunFolder, replaced: Collection[str]) -> None:
    """Raise UsageError that names every part which a resume of the run needs and no plugin has, with the line that would work.
    The trackers and the backend are not needed if the line names others: `replaced` has the kinds of which it does."""
    manifest = run.manifest
    lost = [part for part in manifest.get("parts", {}) if _kind(part) not in replaced and not _is_there(plugins, part)]
    if not (text := _missing(plugins, f"Run {run.name}", manifest, lost)):
        return
    needed = [part for part in lost if _kind(part) != "tracker"]
    options = dict.fromkeys([*plugins.options, *plugin_options(run)])
    then = f"Then: {resume_line(run, plugins=options)}." if needed else f"With it: {resume_line(run, plugins=options)}."
    if len(needed) < len(lost):
        then += f" A tracker can be replaced: {resume_line(run, '--tracker', 'none', plugins=options)}, or --tracker NAME."
    raise UsageError(f"{text} {then}")


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


def _missing(plugins: PluginManager, owner: str, manifest: Mapping[str, Any], parts: Iterable[str]) -> str:
    """The message about parts of a run that no plugin has now, by package; "" if there is none, or the run does not say where
    they came from."""
    lost: dict[str, list[str]] = {}
    for part in parts:
        lost.setdefault(_reason(plugins, manifest, part), []).append("{} {!r}".format(*part.split(".", 1)))
    sentences = [f"needs {' and '.join(names)}{reason}" for reason, names in lost.items() if reason]
    return f"{owner} {'; it '.join(sentences)}." if sentences else ""


def _reason(plugins: PluginManager, manifest: Mapping[str, Any], part: str) -> str:
    """Why a part is not there and how to get it back; "" if the run does not say where it came from."""
    package = manifest.get("parts", {}).get(part)
    if package and _is_loaded(plugins, package):
        return f" of {package}, {_fault(plugins, part, package, manifest).removesuffix('.')}"
    # a run of an older version says only which packages were installed
    packages = [package] if package else [p for p in manifest.get("plugins", {}) if not _is_loaded(plugins, p)]
    absent = [": ".join(_absent(package, manifest)) for package in packages]
    return f", and {' or '.join(absent)}" if absent else ""


def _of_a_copy(plugins: PluginManager, folder: Path, packages: Any, error: UnknownPart) -> str:
    """The message about an unknown part of a model folder outside of a run."""
    part, saved = error.part, packages if isinstance(packages, dict) else {}
    entry = saved.get(part)  # of a file that anyone may have written
    package, version = (str(entry.get(key, "")) if isinstance(entry, dict) else "" for key in ("package", "version"))
    if package and (text := _missing(plugins, str(folder), {"parts": {part: package}, "plugins": {package: version}}, [part])):
        return text
    kind, _, name = part.partition(".")
    return (
        f"{folder} needs {kind} {name!r}, and config.json does not say which package has it: install that, or load its file with "
        f"-p FILE. {error}"
    )


def _fault(plugins: PluginManager, part: str, package: str, manifest: Mapping[str, Any]) -> str:
    """Why a package that is installed has no such part: it is blocked, broken, or another version."""
    owners = [p for p in plugins.plugins if p.distribution == package]
    if block := next((b for p in owners for b in p.blocked.values() if part in p.blocked or not p.records), ""):
        return f"which is blocked by {block}: take that out of -p or MM_PLUGINS."
    if broken := next((p for p in owners if p.state == "broken"), None):
        return f"which is broken: {command_line('plugins', broken.name, plugins=plugins.options)} shows why."
    before = manifest["plugins"].get(package, "")
    again = f" Return to {before}: pip install {package}=={before}" if before != owners[0].version else ""
    return f"whose version {owners[0].version or package} has no such part.{again}"


def _absent(package: str, manifest: Mapping[str, Any]) -> tuple[str, str]:
    """`mm-example 0.1.0 is not installed` and `pip install mm-example==0.1.0`; a file or module is given with `-p` instead."""
    version = manifest.get("plugins", {}).get(package, "")
    if not version:
        gone = is_path(package) and not Path(package).is_file()
        return f"{package} is not {'there: restore it, and load it' if gone else 'loaded'}", shlex.join(["-p", package])
    return f"{package} {version} is not installed", f"pip install {package}=={version}"


def _is_loaded(plugins: PluginManager, package: str) -> bool:
    return any(plugin.distribution == package for plugin in plugins.plugins)


def _kind(part: str) -> str:
    return part.partition(".")[0]


def _is_there(plugins: PluginManager, part: str) -> bool:
    kind, _, name = part.partition(".")
    return kind in KINDS and any(spec.name == name for spec in plugins.specs(KINDS[kind]))
