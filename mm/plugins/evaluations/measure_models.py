"""One evaluation from the settings to the saved reports, for `mm eval` and `mm.evaluate`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mm.core.config.sections import Section
from mm.core.errors import StorageError
from mm.core.layers import Layer
from mm.core.plugins import PluginManager
from mm.core.say import Say
from mm.core.workspace import Workspace
from mm.plugins.evaluations import measure, report
from mm.plugins.evaluations.settings import EvalSettings
from mm.runtime.models.finding import find_model
from mm.runtime.models.load_settings import InferenceComposition
from mm.runtime.models.storage import storage_error
from mm.runtime.runs import api

_SECTION = Section(name="eval", config=EvalSettings)


def composition_of(plugins: PluginManager, layers: Sequence[Layer]) -> InferenceComposition:
    """The options of an evaluation, and those for opening its models."""
    return InferenceComposition(plugins, layers, _SECTION)


def measure_models(
    composition: InferenceComposition, models: Sequence[str], name: str, workspace: Workspace, say: Say
) -> tuple[list[dict[str, Any]], list[StorageError]]:
    """Measure each model, a run's name or a folder. Returns the reports, and the errors of those that could not be saved.

    The report of a run's model is saved in the run, as `name` or by a name made from the settings. Raises UsageError before
    anything is measured if something is wrong.
    """
    plugins, inference, settings = composition.plugins, composition.inference, _SECTION.read(composition.layers)
    measure.check_settings(plugins, settings, inference.parts)
    report.check_free([find_model(model, workspace) for model in models], name)
    api.activate(plugins, inference.backend, say)
    from mm.runtime.generation import text_model

    printed, unsaved = set[str](), list[StorageError]()

    def once(line: str) -> None:  # all models are measured on the same data
        if line not in printed:
            say(line)
        printed.add(line)

    def measure_and_save(model: str) -> dict[str, Any]:
        opened = text_model.load(plugins, model, workspace, inference)
        say(f"{model}: measuring on {inference.backend}")
        result = report.evaluate(plugins, model, opened, inference, settings, workspace, once)
        try:
            path = report.save(result, name)
        except OSError as error:  # the results are returned all the same
            explained = storage_error(error)
            if explained is None:
                raise
            unsaved.append(explained)
        else:
            say(f"report: {path}" if path else f"report: not saved, {model} belongs to no run; --json prints it")
        return result

    return [measure_and_save(model) for model in models], unsaved
