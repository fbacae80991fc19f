"""The report of an evaluation: the model, the settings, the machine, the date and the results. It is saved in the model's
run."""

from __future__ import annotations

import json
import re
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from mm.core.errors import UsageError
from mm.core.say import Say
from mm.core.workspace import Workspace, check_name, write_text
from mm.plugins.evaluations.measure import items_digest, measure
from mm.plugins.evaluations.settings import EvalSettings
from mm.runtime.models.finding import run_of
from mm.runtime.models.load_settings import Inference
from mm.runtime.models.storage import fingerprint

if TYPE_CHECKING:
    from mm.core.plugins import PluginManager
    from mm.runtime.generation.text_model import TextModel


def evaluate(
    plugins: PluginManager,
    name: str,
    model: TextModel,
    inference: Inference,
    settings: EvalSettings,
    workspace: Workspace,
    say: Say,
) -> dict[str, Any]:
    """Measure an opened model. Returns the report as JSON values; `name` is the model's name in it, as the user wrote it."""
    started = time.time()
    conditions = conditions_of(name, model, inference, settings)
    results = measure(plugins, model, settings, workspace.cache, say, inference.parts)
    date = time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(started))
    return {"date": date, "seconds": round(time.time() - started, 3), **conditions, **results}


def conditions_of(name: str, model: TextModel, inference: Inference, settings: EvalSettings) -> dict[str, Any]:
    """The part of a report that is known before anything is measured: everything that the results depend on."""
    from mm.runtime.runs.manifest import versions

    loaded = model.loaded
    assert loaded.path is not None
    return {
        "model": {
            "name": name, "path": str(loaded.path), "fingerprint": fingerprint(loaded.path),
            "architecture": loaded.architecture, "parameters": sum(p.numel() for p in loaded.model.parameters()),
            "tokenizer": loaded.tokenizer.fingerprint, "changes": dict(inference.changes),
        },
        "backend": {
            "name": inference.backend, "dtype": str(next(loaded.model.parameters()).dtype).removeprefix("torch."),
            "engine": inference.engine, **model.backend.capabilities(),
        },
        "settings": attrs.asdict(settings),
        "versions": versions(),
        **({"items": items_digest(settings)} if settings.skills else {}),
    }  # fmt: skip


def saved_report(conditions: dict[str, Any]) -> dict[str, Any] | None:
    """A saved report of the same model under the same conditions, with the model's present name and path; None if there is
    none. `conditions` is the result of `conditions_of`."""
    run, wanted = run_of(Path(conditions["model"]["path"])), _comparison_key(conditions)
    for path in sorted(run.evals.glob("*.json")) if run else ():
        with suppress(ValueError, KeyError):  # the file is not a report
            report: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            if _comparison_key(report) == wanted:
                return {**report, "model": conditions["model"]}
    return None


def _is_repeated(path: Path, report: dict[str, Any]) -> bool:
    """True if the report at `path` is of the same model, conditions and data."""
    with suppress(ValueError, KeyError, TypeError):  # the file is not a report
        before: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        same_data = [[text["digest"] for text in each.get("text", ())] for each in (before, report)]
        return _comparison_key(before) == _comparison_key(report) and same_data[0] == same_data[1]
    return False


def _comparison_key(report: dict[str, Any]) -> Any:
    """The conditions as they read back from JSON, without the model's name and path, which do not change the results."""
    model = {key: value for key, value in report["model"].items() if key not in ("name", "path")}
    return json.loads(json.dumps([model, *(report[key] for key in ("backend", "settings", "versions")), report.get("items")]))


def default_name(settings: EvalSettings) -> str:
    """A report's name, made from the data and the split: `texts+skills-test`."""
    parts = [Path(locator).name.partition(".")[0] for locator in settings.data]
    parts += [f"skills-{settings.split}"] if settings.skills else []
    return re.sub(r"[^\w+.-]+", "-", "+".join(parts))


def check_free(models: list[Path], name: str) -> None:
    """Raise UsageError if one of the models has a report of that name already. Called before anything is measured."""
    for path in (_path(model, name) for model in models if name):
        if path is not None and path.exists():
            raise UsageError(f"--name {name}: {path} exists; choose another name.")


def save(report: dict[str, Any], name: str) -> Path | None:
    """Write a report into its model's run, and return the path; None if the model belongs to no run.

    The report is called `name`, or `default_name` if that is empty. A report of the same measurement is replaced; if the name is
    taken by another, a number is appended.
    """
    model, settings = Path(report["model"]["path"]), EvalSettings(**report["settings"])
    stem, number = name or default_name(settings), 1
    path = _path(model, stem)
    while path is not None and path.exists() and not _is_repeated(path, report):
        number += 1
        path = _path(model, f"{stem}-{number}")
    if path is not None:
        write_text(path, json.dumps(report, indent=1, ensure_ascii=False))
    return path


def _path(model: Path, name: str) -> Path | None:
    run = run_of(model)
    if run is None:
        return None
    check_name("--name", name)
    return run.evals / f"{name}.json"
