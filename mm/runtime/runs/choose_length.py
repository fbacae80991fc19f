"""The length of sequences that is chosen where the default does not fit the model. Imports no torch."""

from __future__ import annotations

from mm.core.config.autoselect import Choices
from mm.core.config.composition import TRAIN, Composition
from mm.core.config.sections import section_of
from mm.core.errors import MMError
from mm.core.layers import merge
from mm.core.records import ArchitectureSpec
from mm.core.workspace import Workspace
from mm.runtime.models.description import describe
from mm.runtime.models.finding import find_model


def choose_length(composition: Composition, workspace: Workspace) -> Choices:
    """The model's positions as `--max-length`, if nobody has given one and the default is longer."""
    origin = merge(composition.layers, [TRAIN.option("max_length")])[1]["max_length"]
    positions, default = _positions(composition, workspace), composition.read(TRAIN).max_length
    if origin != "default" or positions is None or default <= positions:
        return {}
    return {"max_length": (positions, f"max length: {positions}, the positions of the model (by default {default})")}


def _positions(composition: Composition, workspace: Workspace) -> int | None:
    selection = composition.selection
    if selection.arch:
        spec = composition.plugins.get(ArchitectureSpec, selection.arch)
        positions: int | None = composition.read(section_of(spec)).max_position_embeddings
        return positions
    try:
        plugins = composition.plugins
        return describe(plugins, find_model(selection.from_, workspace, plugins)).config.max_position_embeddings
    except MMError:  # reported where the model is opened
        return None
