"""What a run that draws completions has besides its models: engine, rewards, tools, and a file of samples to read."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import torch

from mm.core.choices import choose_engine
from mm.core.contracts import Engine, Reward, Tool
from mm.core.errors import UsageError
from mm.core.resolve import part_name, section_of
from mm.core.training.models import freeze

if TYPE_CHECKING:
    from torch import nn

    from mm.core.backend import Backend
    from mm.core.plugins import PluginManager
    from mm.core.run import Run

ROLLOUTS = "rollouts.jsonl"
_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@attrs.frozen(kw_only=True)
class RolloutTools:
    """Builds the parts of a run's rollout selection. Paths among the options of rewards and tools begin at `workspace`."""

    plugins: PluginManager
    run: Run
    backend: Backend
    workspace: Path

    def engine(self, model: nn.Module, dtype: str) -> Engine:
        """The engine of the run. In float32 it shares the policy's weights; for another compute type it holds a copy in
        that type, so that it multiplies what the trainer's autocast does, and `update` refreshes it."""
        spec = choose_engine(self.plugins, self.run.select.backend, self._parts.engine or None)
        if dtype in _DTYPES:
            device = next(model.parameters()).device
            model = freeze(copy.deepcopy(model), device, _DTYPES[dtype])
        engine: Engine = self.plugins.load("engine", spec.name)(self._config("engine", spec.name), model, self.backend)
        return engine

    def rewards(self) -> dict[str, tuple[Reward, float]]:
        """Name -> the reward and its weight. Raises UsageError for a weight that is no number."""
        found = {}
        for locator in self._parts.reward:
            name = part_name(locator)
            found[name] = self.plugins.load("reward", name)(self._placed("reward", name)), _weight(locator)
        return found

    def tools(self) -> dict[str, Tool]:
        """Name in the tool's schema -> the tool."""
        built = [self.plugins.load("tool", name)(self._placed("tool", name)) for name in self._parts.tool]
        return {tool.schema["name"]: tool for tool in built}

    @property
    def skip_failed_rewards(self) -> bool:
        """Whether a reward that fails is counted instead of ending the run."""
        return bool(self._parts.skip_failed_rewards)

    @property
    def _parts(self) -> Any:
        return self.run.parts["rollout"]

    def _config(self, kind: str, name: str) -> Any:
        spec = self.plugins.get(kind, name)
        if spec.config is None:
            return None
        return self.run.parts.get(section_of(spec).name) or spec.config()

    def _placed(self, kind: str, name: str) -> Any:
        config = self._config(kind, name)
        if config is None:
            return None
        given = attrs.asdict(config, recurse=False)
        return attrs.evolve(config, **{field: self.workspace / v for field, v in given.items() if isinstance(v, Path)})


def log_to(folder: Path, main: bool) -> Callable[[Sequence[Mapping[str, Any]]], None]:
    """Appends samples to the run's `rollouts.jsonl`, on the main rank."""

    def log(samples: Sequence[Mapping[str, Any]]) -> None:
        if main and folder.is_dir():
            with (folder / ROLLOUTS).open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(sample, ensure_ascii=False) + "\n" for sample in samples)

    return log


def _weight(locator: str) -> float:
    text = locator.partition(":")[2]
    try:
        return float(text) if text else 1.0
    except ValueError:
        raise UsageError(f"--reward {locator}: expected NAME or NAME:WEIGHT, with a number for the weight.") from None
