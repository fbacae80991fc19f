"""What learns, what is trained in a model's place, and what watches."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import attrs

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from torch import Tensor, nn

    from mm.core.data.order import Order
    from mm.core.training.batch import Packed, Unit
    from mm.core.training.roles import Role
    from mm.core.training.tools import Tools
    from mm.core.training.trainer import Trainer

Totals = Mapping[str, float]
Metrics = dict[str, "tuple[Tensor, Tensor | float]"]


class Largest(NamedTuple):
    """A metric of which the largest `value` of the interval is told instead of the mean; one of `size` 0 does not count."""

    value: Tensor
    size: float


@attrs.frozen(kw_only=True)
class Watch:
    """The range in which a metric is well, and what it means when it leaves that."""

    meaning: str
    low: float = -math.inf
    high: float = math.inf


class Algorithm:
    """What is learned. The trainer owns device, precision, accumulation, clipping, schedule, logging and resume.

    `models` maps each role that `needs` named to a `Role`; `tools` gives the tokenizer, the engine, keyed random
    generators and more rows. `watch` names metrics whose leaving a range is said, with its meaning.
    """

    watch: ClassVar[Mapping[str, Watch]] = {}

    def __init__(self, config: Any, models: Mapping[str, Role], tools: Tools) -> None:
        self.config, self.models, self.tools = config, models, tools

    def order(self, order: Order, rows: Sequence[int]) -> Order:
        """What decides which of the training rows come next; `order` is the default."""
        return order

    def prepare(self, units: list[Unit]) -> list[list[Unit]]:
        """This rank's rows -> mini-batches, one optimizer step each; called without gradients (rollouts, rewards)."""
        return [units]

    def counts(self, batch: Packed) -> dict[str, float]:
        """What the loss divides by, counted on the host; summed over micro-batches and ranks before any backward."""
        raise NotImplementedError

    def loss(self, batch: Packed, totals: Totals) -> tuple[Tensor, Metrics]:
        """This micro-batch's share of the loss, already divided, and metrics as detached (sum, count) or `Largest`."""
        raise NotImplementedError

    def evaluate(self, units: list[Unit]) -> Metrics | None:
        """Metrics of this rank's held-out rows, where the loss is not what they are judged by (rollouts); None: the
        loss's metrics are. Called without gradients."""
        return None

    def after_step(self, step: int) -> bool:
        """Called after an optimizer step; True drops the rest of this `prepare`'s mini-batches, on every rank."""
        return False

    def state_dict(self) -> dict[str, Any]:
        """What an exact resume needs beyond the models."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` gave."""


class Adapter(ABC):
    """A change to a model's weights that is trained instead of them. One object belongs to one model; `name` is that of
    its record."""

    def __init__(self, name: str, config: Any, model: nn.Module) -> None:
        self.name, self.config, self.model = name, config, model

    @abstractmethod
    def apply(self, saved: Path | None = None) -> None:
        """Put the adapter's parameters into the model and freeze all others: those of a folder that `save` wrote or,
        without one, new ones, with which the model answers as before. Raises CheckpointError for what does not fit."""

    @abstractmethod
    def restart(self) -> bool:
        """Put the change, where there is one, into the plain weights for good and begin anew with new parameters, with
        which the model answers as before, also inside `off`; whether there was one."""

    @abstractmethod
    def remove(self) -> None:
        """Take the adapter's parameters out again; the model is a plain one, all its parameters can be trained."""

    @abstractmethod
    def names(self) -> frozenset[str]:
        """The names of the adapter's tensors in the model's state; the other names are those of a plain model."""

    @abstractmethod
    def off(self) -> AbstractContextManager[None]:
        """Inside, the model answers as without the adapter."""

    @abstractmethod
    def merged(self) -> AbstractContextManager[None]:
        """Inside, the plain model's tensors hold the change, and the adapter adds nothing; afterwards they are bit for
        bit what they were."""

    @abstractmethod
    def save(self, folder: Path, tensors: Mapping[str, Tensor]) -> None:
        """Write the adapter's `tensors` (those of its `names`, perhaps of an earlier moment) into an existing folder, in a
        layout of its own."""

    def notes(self) -> list[str]:
        """What is said of how it will be saved, when a run starts and when the finished one stands."""
        return []


class Callback:
    """Watches a run. Override the events you want; a tracker is a callback with a config.

    `on_step` is called after each optimizer step and must not read device tensors (it would synchronise). A checkpoint keeps
    the state of a callback under `name`, or the class's name without one: set it where the class may be renamed or moved.
    """

    name: ClassVar[str] = ""
    events: ClassVar[tuple[str, ...]] = ("on_start", "on_step", "on_evaluate", "on_log", "on_save", "on_end")

    def on_start(self, trainer: Trainer) -> None:
        """Before the first step."""

    def on_step(self, trainer: Trainer) -> None:
        """After an optimizer step."""

    def on_evaluate(self, trainer: Trainer, metrics: Mapping[str, float]) -> None:
        """After an evaluation on the held-out part."""

    def on_log(self, trainer: Trainer, metrics: Mapping[str, float]) -> None:
        """After metrics of a log interval reached the host."""

    def on_save(self, trainer: Trainer, path: Path) -> None:
        """After a checkpoint stands under its final name, which may be some steps after the one it is of."""

    def on_end(self, trainer: Trainer, error: BaseException | None) -> None:
        """After the last step, or after the error that ended the run."""

    def state_dict(self) -> dict[str, Any]:
        """What an exact resume needs."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` gave."""
