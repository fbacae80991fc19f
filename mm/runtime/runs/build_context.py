"""Building the `Context` of an algorithm: rows, micro-batches and, if it draws completions, engine, rewards, tools and a log."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from mm.core.config.autoselect import choose_engine
from mm.core.config.sections import part_name, section_of
from mm.core.errors import UsageError
from mm.core.records import EngineSpec, RewardSpec, ToolSpec
from mm.core.settings import EpisodeParts
from mm.runtime.devices.dtypes import torch_dtype
from mm.runtime.generation.engine import Engine, Reward, Tool
from mm.runtime.models.folder import LoadedModel, freeze
from mm.runtime.nn.batch import Packed, Unit, pack, split_by_tokens
from mm.runtime.runs.part_files import placed
from mm.runtime.training.context import Context, of_store
from mm.runtime.training.json_lines import ROLLOUTS, append_lines, rewind_lines
from mm.runtime.training.sharding import padded

if TYPE_CHECKING:
    from mm.core.plugins import PluginManager
    from mm.core.run import Run
    from mm.core.say import Say
    from mm.core.spec import Spec
    from mm.core.workspace import RunFolder, Workspace
    from mm.runtime.devices.backend import Backend
    from mm.runtime.nn.model import Model
    from mm.runtime.training.distributed import World
    from mm.runtime.training.feed import Feed


@attrs.frozen(kw_only=True)
class ContextBuilder:
    """Builds the `Context` of a run. Relative paths in the options of rewards and tools start at the workspace. `sharded`: every
    forward of a trained model is one of all ranks."""

    plugins: PluginManager
    run: Run
    workspace: Workspace
    folder: RunFolder
    backend: Backend
    world: World
    loaded: LoadedModel
    say: Say
    sharded: bool = False

    def context(self, feed: Feed) -> Context:
        """The context with everything that the run's algorithm may use."""
        settings = self.run.train
        device = self.backend.device(self.world.local_rank)
        rollout = self._rollout() if self.run.needs.generates else {}
        return Context(
            tokenizer=self.loaded.tokenizer, world=self.world, seed=settings.seed, more_rows=feed.take,
            max_length=settings.max_length, cache=self.workspace.cache,
            packs=lambda units: [batch.to(device) for batch in self._packs(units)],
            warn=self._warn, **of_store(feed.store), **rollout,
        )  # fmt: skip

    def _packs(self, units: list[Unit]) -> list[Packed]:
        packs = [pack(part) for part in split_by_tokens(units, self.run.train.micro_batch_tokens)]
        return padded(packs, self.world.max(len(packs))) if self.sharded else packs

    def _warn(self, text: str) -> None:
        """Print a warning once, and note it for the manifest."""
        if text not in self.backend.notes and self.world.main:
            self.backend.notes.append(text)
            self.say(text)

    def _rollout(self) -> dict[str, Any]:
        dtype = self.run.train.dtype
        dtype = self.backend.default_dtype() if dtype == "auto" else dtype
        return {
            "engine": self.engine(self.loaded.model, dtype), "rewards": self.rewards(), "tools": self.tools(),
            "skip_failed_rewards": self._parts.skip_failed_rewards, "log": log_to(self.folder.path, self.world.main),
        }  # fmt: skip

    def engine(self, model: Model, dtype: str) -> Engine:
        """The engine of the run. In float32 it shares the policy's weights. For another compute type it holds a copy in that
        type, so that it computes with the values that autocast gives the trainer; `update` refreshes the copy."""
        spec = choose_engine(self.plugins, self.run.select.backend, self._parts.engine)
        if dtype != "fp32":
            device = next(model.parameters()).device
            model = freeze(copy.deepcopy(model), device, torch_dtype(dtype))
        engine: Engine = self.plugins.load(EngineSpec, spec.name)(self._config(EngineSpec, spec.name), model, self.backend)
        for note in engine.notes():
            self._warn(note)
        return engine

    def rewards(self) -> dict[str, tuple[Reward, float]]:
        """Name -> (reward, weight). Raises UsageError if a weight is not finite."""
        found = {}
        for locator in self._parts.reward:
            name = part_name(locator)
            found[name] = self.plugins.load(RewardSpec, name)(self._placed(RewardSpec, name)), _weight(locator)
        return found

    def tools(self) -> dict[str, Tool]:
        """Name in the tool's schema -> the tool."""
        names = self._parts.tool if isinstance(self._parts, EpisodeParts) else ()
        built = [self.plugins.load(ToolSpec, name)(self._placed(ToolSpec, name)) for name in names]
        return {tool.schema["name"]: tool for tool in built}

    @property
    def _parts(self) -> Any:
        return self.run.parts["rollout"]

    def _config(self, record: type[Spec], name: str) -> Any:
        spec = self.plugins.get(record, name)
        if spec.config is None:
            return None
        return self.run.parts.get(section_of(spec).name) or spec.config()

    def _placed(self, record: type[Spec], name: str) -> Any:
        return placed(self._config(record, name), self.workspace)


def log_to(folder: Path, main: bool) -> Callable[[Sequence[Mapping[str, Any]]], None]:
    """A function that appends samples to the run's `rollouts.jsonl`, on the main rank. Before the first ones it removes those
    that an interrupted run wrote after its last checkpoint. A `place` below the workspace is written relative to it."""
    path, begun, below = folder / ROLLOUTS, False, f"{folder.parents[1]}/"

    def log(samples: Sequence[Mapping[str, Any]]) -> None:
        nonlocal begun
        if main and samples and folder.is_dir():
            if not begun and "step" in samples[0]:
                rewind_lines(path, samples[0]["step"] - 1)
            begun = True
            places = [{"place": s["place"].removeprefix(below)} if "place" in s else {} for s in samples]
            append_lines(path, [{**sample, **place} for sample, place in zip(samples, places, strict=True)])

    return log


def _weight(locator: str) -> float:
    text = locator.partition(":")[2]
    try:
        weight = float(text) if text else 1.0
    except ValueError:
        weight = math.nan
    if not math.isfinite(weight):
        raise UsageError(f"--reward {locator}: expected NAME or NAME:WEIGHT, with a finite number for the weight.")
    return weight
