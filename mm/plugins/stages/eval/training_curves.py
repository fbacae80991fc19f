"""Plotting the training curves of all stages."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from mm.core.errors import UsageError
from mm.plugins.evaluations.plot import default_metrics, plot_runs
from mm.plugins.evaluations.stage_effects import TrainedModel


def plot_curves(models: Sequence[TrainedModel], base: Sequence[str], folder: Path, say: Callable[[str], None]) -> list[str]:
    """Plot the losses of the `base` stages side by side in `loss.png`, and the curves of every other stage in `STAGE.png`.

    Returns the paths of the pictures. A stage whose run has logged none of the metrics is reported with `say`.
    """
    runs = {trained.name: trained.run for trained in models if trained.run}
    groups = {"loss": [stage for stage in runs if stage in base]} | {stage: [stage] for stage in runs if stage not in base}
    pictures = []
    for name, stages in groups.items():
        plotted = [runs[stage] for stage in stages]
        try:
            pictures.append(str(plot_runs(plotted, default_metrics(plotted), folder / f"{name}.png", apart=True)))
        except UsageError as error:  # the run has logged none of the metrics
            say(f"{name}.png: {error}")
    return pictures
