"""Runs whose model has learned from texts alone, and so continues a text instead of answering. Imports no torch."""

from __future__ import annotations

from mm.core.errors import UsageError
from mm.core.plugins import PluginManager
from mm.core.records import AlgorithmSpec
from mm.core.say import command_line
from mm.core.workspace import RunFolder, Workspace
from mm.runtime.hubs.locator import is_hub
from mm.runtime.models.finding import find_model, run_of


def learned_texts(plugins: PluginManager, run: RunFolder) -> bool:
    """True if the algorithm of a run learns from texts; False if it is not installed any more."""
    name = None if run.damage else run.manifest.get("algorithm")
    spec = next((spec for spec in plugins.specs(AlgorithmSpec) if spec.name == name), None)
    return spec is not None and spec.needs(spec.config() if spec.config else None).data == "text"


def only_pretrained(plugins: PluginManager, model: str, workspace: Workspace) -> str:
    """The line that tells the user of a chat what to expect, if the model comes from runs on texts alone; otherwise ""."""
    given, seen = model, set[RunFolder]()
    while given and (given == model or not is_hub(given)):  # nothing is downloaded for a hint
        try:
            run = run_of(find_model(given, workspace, plugins))
        except UsageError:  # the run that it started from was removed: nothing is known
            return ""
        if run is None or run in seen or not learned_texts(plugins, run):
            return ""
        seen.add(run)
        given = str(run.manifest.get("settings", {}).get("from", ""))
    use = command_line("generate", model, "Once upon a time", "--raw", plugins=plugins.options)
    teach = command_line("train", "--algo", "sft", "--from", model, plugins=plugins.options)
    hint = f"{use} continues one; {teach} teaches it."
    return f"{model} was only pretrained: it continues text and has not learned to answer. {hint}"
