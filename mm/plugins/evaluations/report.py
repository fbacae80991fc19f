"""The report of an evaluation: what was measured on which model, how and when; kept with the model's run."""

from __future__ import annotations

import json
import re
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from mm.core.config.load_settings import Inference
from mm.core.errors import UsageError
from mm.core.say import Say
from mm.core.workspace import Workspace, fingerprint, run_of, write_text
from mm.plugins.evaluations.measure import items_digest, measure
from mm.plugins.evaluations.settings import EvalSettings

if TYPE_CHECKING:
    from mm.core.plugins import PluginManager
    from mm.runtime.generation.text_model import TextModel


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
    started = time.time()
    about = describe(model, opened, how, settings)
    figures = measure(plugins, opened, settings, workspace.cache, say)
    date = time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(started))
    return {"date": date, "seconds": round(time.time() - started, 3), **about, **figures}


def describe(model: str, opened: TextModel, how: Inference, settings: EvalSettings) -> dict[str, Any]:
    """The part of a report that stands before anything is measured: what its figures depend on."""
    from mm.runtime.runs.lifecycle import versions

    loaded = opened.loaded
    assert loaded.path is not None
    return {
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
        **({"items": items_digest(settings)} if settings.skills else {}),
    }  # fmt: skip


def known(about: dict[str, Any]) -> dict[str, Any] | None:
    """The kept report of this very model, asked the same in the same way, under the name that it has now; or None.

    `about` is what `describe` gave.
    """
    run, wanted = run_of(Path(about["model"]["path"])), _decisive(about)
    for path in sorted(run.evals.glob("*.json")) if run else ():
        with suppress(ValueError, KeyError):  # a file that is no report
            report: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            if _decisive(report) == wanted:
                return {**report, "model": about["model"]}
    return None


def _decisive(report: dict[str, Any]) -> Any:
    """What the figures depend on, as JSON has it; not what the model is called or where it lies."""
    model = {key: value for key, value in report["model"].items() if key not in ("name", "path")}
    return json.loads(json.dumps([model, *(report[key] for key in ("backend", "settings", "versions")), report.get("items")]))


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
