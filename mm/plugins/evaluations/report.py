"""The report of an evaluation: what was measured on which model, how and when; kept with the model's run."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from mm.core.errors import UsageError
from mm.core.inference import Inference
from mm.core.workspace import Workspace, fingerprint, run_of, write_text
from mm.plugins.evaluations.measure import measure
from mm.plugins.evaluations.settings import EvalSettings

if TYPE_CHECKING:
    from mm.core.plugins import PluginManager
    from mm.core.training.generation import TextModel

Say = Callable[[str], None]


def evaluate(
    plugins: PluginManager,
    model: str,
    opened: TextModel,
    how: Inference,
    settings: EvalSettings,
    workspace: Workspace,
    say: Say,
) -> dict[str, Any]:
    """Measure an opened model and answer the report, as JSON values; `model` is what the user called it."""
    from mm.core.training.runfolder import versions

    started = time.time()
    figures = measure(plugins, opened, settings, workspace.cache, say)
    loaded = opened.loaded
    assert loaded.path is not None
    return {
        "date": time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(started)),
        "seconds": round(time.time() - started, 3),
        "model": {
            "name": model, "path": str(loaded.path), "fingerprint": fingerprint(loaded.path),
            "architecture": loaded.architecture, "parameters": sum(p.numel() for p in loaded.model.parameters()),
            "tokenizer": loaded.tokenizer.fingerprint, "changes": dict(how.changes),
        },
        "backend": {
            "name": how.backend, "dtype": str(next(loaded.model.parameters()).dtype).removeprefix("torch."),
            "engine": how.engine, **opened.backend.capabilities(),
        },
        "settings": attrs.asdict(settings),
        "versions": versions(),
        **figures,
    }  # fmt: skip


def default_name(settings: EvalSettings) -> str:
    """What was measured, as the name of a file: `texts+skills-test`."""
    parts = [Path(locator).name.partition(".")[0] for locator in settings.data]
    parts += [f"skills-{settings.split}"] if settings.skills else []
    return re.sub(r"[^\w+.-]+", "-", "+".join(parts))


def check_name(models: list[Path], name: str) -> None:
    """Raise UsageError when a report of that name stands already, before anything is measured."""
    for path in (_path(model, name) for model in models if name):
        if path is not None and path.exists():
            raise UsageError(f"--name {name}: {path} exists; choose another name.")


def keep(report: dict[str, Any], name: str) -> Path | None:
    """Write a report into its model's run, under `name` or a free name that says what was measured; None without a run."""
    model, settings = Path(report["model"]["path"]), EvalSettings(**report["settings"])
    stem, number = name or default_name(settings), 1
    path = _path(model, stem)
    while path is not None and path.exists():
        number += 1
        path = _path(model, f"{stem}-{number}")
    if path is not None:
        write_text(path, json.dumps(report, indent=1, ensure_ascii=False))
    return path


def _path(model: Path, name: str) -> Path | None:
    run = run_of(model)
    if run is None:
        return None
    if name != Path(name).name or name.startswith("."):
        raise UsageError(f"--name {name!r}: expected one file name, without '/'.")
    return run.evals / f"{name}.json"
