"""The curves of the trainings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from mm.core.errors import UsageError
from mm.plugins.evaluations.moved import Trained
from mm.plugins.evaluations.plot import plot_runs, telling


def draw(trained: Sequence[Trained], base: Sequence[str], folder: Path, say: Callable[[str], None]) -> list[str]:
    """`loss.png` has the losses of the `base` stages side by side; every other one has a picture of its own, STAGE.png."""
    runs = {one.name: one.run for one in trained if one.run}
    groups = {"loss": [stage for stage in runs if stage in base]} | {stage: [stage] for stage in runs if stage not in base}
    drawn = []
    for name, stages in groups.items():
        shown = [runs[stage] for stage in stages]
        try:
            drawn.append(str(plot_runs(shown, telling(shown), folder / f"{name}.png", apart=True)))
        except UsageError as error:  # a run that logged nothing of the kind
            say(f"{name}.png: {error}")
    return drawn
