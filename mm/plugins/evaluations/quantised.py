"""Held-out skills before and after a quantisation, for `mm convert --skills`: what `mm eval --skills` measures, on the model and
on the weights in the written file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs

from mm.core.errors import UsageError
from mm.core.layers import argument_layer
from mm.core.plugins import PluginManager
from mm.core.records import EngineSpec
from mm.core.say import Say
from mm.core.workspace import Workspace
from mm.plugins.evaluations.measure import measure
from mm.plugins.evaluations.measure_models import composition_of
from mm.plugins.evaluations.settings import EvalSettings
from mm.plugins.evaluations.table import as_text, table_of
from mm.runtime.models.repacker import Compare

if TYPE_CHECKING:
    from mm.runtime.models.folder import LoadedModel

_WIDTH = 100  # columns of the table


def comparison(
    plugins: PluginManager, quantise: str, skills: bool, limit: int | None, workspace: Workspace, say: Say
) -> Compare | None:
    """The measurement for a conversion with these options; None without `skills`. Raises UsageError for an option that would have
    no effect."""
    if not skills:
        if limit is not None:
            raise UsageError("--limit has no effect without --skills: it is the number of held-out items that are asked.")
        return None
    if not quantise:
        raise UsageError("--skills compares a model with its quantised weights: give --quantise, or measure it with mm eval.")
    settings = EvalSettings(skills=True, limit=limit)

    def compare(before: LoadedModel, after: LoadedModel) -> None:
        models = {"original": before, quantise: after}
        reports: list[dict[str, Any]] = [
            {
                "model": {"name": name}, "settings": attrs.asdict(settings),
                **_measured(plugins, loaded, settings, workspace, say),
            }
            for name, loaded in models.items()
        ]  # fmt: skip
        for line in as_text(table_of(reports), _WIDTH).splitlines():
            say(line.rstrip())
        totals = [{key: sum(entry[key] for entry in report["skills"]) for key in ("right", "total")} for report in reports]
        shares = ", ".join(f"{name} {t['right']} of {t['total']}" for name, t in zip(models, totals, strict=True))
        say(f"held-out skills, right answers: {shares}")

    return compare


def _measured(
    plugins: PluginManager, loaded: LoadedModel, settings: EvalSettings, workspace: Workspace, say: Say
) -> dict[str, list[dict[str, Any]]]:
    """The results of `mm eval` for a model that is in memory, on the CPU."""
    import torch

    from mm.runtime.generation.text_model import TextModel
    from mm.runtime.models.folder import freeze
    from mm.runtime.models.opening import open_backend

    inference = composition_of(plugins, [argument_layer({"backend": "cpu"})]).inference
    chip, engine = open_backend(plugins, inference.backend), plugins.load(EngineSpec, inference.engine)
    freeze(loaded.model, chip.device(), torch.float32)
    model = TextModel(loaded, chip, lambda: engine(inference.engine_config, loaded.model, chip), say)
    return measure(plugins, model, settings, workspace.cache, say)
