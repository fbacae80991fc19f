"""The contracts: what the parts of each kind implement, and the small values that pass between them.

Importing this module imports no torch, so that a declaration may name these types too.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import attrs

from mm.core.errors import DataError

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from torch import Tensor, nn

    from mm.core.data.order import Order
    from mm.core.data.rows import Row
    from mm.core.layers import Layer
    from mm.core.options import Option
    from mm.core.plugins import PluginManager
    from mm.core.records import StageSpec
    from mm.core.training.batch import Packed, Unit
    from mm.core.training.roles import Role
    from mm.core.training.tools import Tools
    from mm.core.training.trainer import Trainer
    from mm.core.workspace import Workspace

Totals = Mapping[str, float]
Metrics = dict[str, "tuple[Tensor, Tensor | float]"]


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
        """This micro-batch's share of the loss, already divided, and metrics as detached (sum, count)."""
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


@attrs.frozen(kw_only=True)
class Sampling:
    """How tokens are drawn. `temperature` 0 is greedy; `top_k` 0 and `top_p` 1 switch those filters off."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0


@attrs.frozen(kw_only=True)
class Request:
    """One prompt. `key` names the random stream of its draws (seed, step, prompt, sample, turn), so that a result
    does not depend on the slot, the batch or the rank it ran in. `stop` are token ids that end the completion."""

    ids: tuple[int, ...]
    max_new_tokens: int
    stop: tuple[int, ...] = ()
    sampling: Sampling = Sampling()
    key: tuple[int, ...] = (0,)


@attrs.frozen(kw_only=True)
class Completion:
    """What was generated: token ids (with the stopping token), their log-probabilities under the sampling
    distribution before filtering, and why it ended: "stop" or "length"."""

    ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish_reason: str


OnToken = Callable[[int, int, float], None]


class Engine(ABC):
    """What generates completions, token ids in and token ids out."""

    @abstractmethod
    def generate(self, requests: Sequence[Request], on_token: OnToken | None = None) -> list[Completion]:
        """Completions in the order of the requests; `on_token(request, id, logprob)` is called as tokens appear."""

    @abstractmethod
    def update(self, named_tensors: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Take new weights; `version` is the step they come from."""

    def release(self) -> None:  # noqa: B027 - optional: an engine that holds nothing between calls inherits it
        """Free caches and device memory; a later `generate` builds them again."""


class Reward(ABC):
    """A score of completions."""

    def __init__(self, config: Any) -> None:
        self.config = config

    @abstractmethod
    def __call__(self, rows: Sequence[Row], completions: Sequence[str]) -> list[float | None]:
        """One score for each completion; None where the reward does not apply."""


class Tool(ABC):
    """A tool that a model can call. `schema` is its function schema: name, description, JSON-schema parameters."""

    schema: Mapping[str, Any]

    def __init__(self, config: Any) -> None:
        self.config = config

    @abstractmethod
    def __call__(self, arguments: Mapping[str, Any]) -> Any:
        """The result, a JSON value. Raises ValueError, whose text the model is told, for arguments that cannot be."""


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


@attrs.frozen(kw_only=True)
class Position:
    """Where a row stands, for messages: a file (or a source's name) and a line counted from 1."""

    path: str
    line: int


class Source(ABC):
    """Rows by position. `locator` is the text given to `--data`; `row_kind` is what the algorithm needs."""

    def __init__(self, config: Any, locator: str, row_kind: str) -> None:
        self.config, self.locator, self.row_kind = config, locator, row_kind

    @abstractmethod
    def rows(self) -> Iterator[tuple[Position, Mapping[str, Any]]]:
        """Every row with its position. Raises DataError with file and line for what is not a JSON object."""

    @abstractmethod
    def digest(self) -> str:
        """A hash of the content: equal exactly when the rows are equal."""

    def entries(self) -> Iterator[tuple[Position, Mapping[str, Any] | DataError]]:
        """Like `rows`, with an error in the place of what cannot be read, and on to the next row.

        An error without a line is about its whole file. A source that does not override this ends at the first one.
        """
        try:
            yield from self.rows()
        except DataError as error:
            yield Position(path=str(error.path or self.locator), line=error.line or 0), error

    def fraction(self) -> float | None:
        """How much of the running pass has been read, 0 to 1; None where that is not known."""
        return None

    def notes(self) -> Sequence[str]:
        """What the user should be told about what is read, such as files that are left out."""
        return ()


class Format(ABC):
    """A row schema. `parse` raises DataError (a reason, without position) for a row that it cannot take."""

    @abstractmethod
    def parse(self, row: Mapping[str, Any]) -> Row:
        """The typed row."""


@attrs.frozen
class StageResult:
    """What a stage did: artifact name -> path, and one line for the summary."""

    artifacts: Mapping[str, Path]
    summary: str = ""


class Stage(ABC):
    """A step of `mm run`. `layers` are the options given for it (highest first), all of them in `options`; `say` prints."""

    def __init__(
        self, spec: StageSpec, plugins: PluginManager, workspace: Workspace, layers: Sequence[Layer], say: Callable[[str], None]
    ) -> None:
        self.spec, self.plugins, self.workspace, self.layers, self.say = spec, plugins, workspace, list(layers), say

    @classmethod
    def options(cls, spec: StageSpec, plugins: PluginManager) -> list[Option]:
        """The options that a stage of this record takes."""
        return []

    def check(self) -> None:  # noqa: B027  a stage without options has nothing to check
        """Raise UsageError for an option's value that cannot be; called for every stage before the first one runs."""

    @abstractmethod
    def inputs(self, artifacts: Mapping[str, Path]) -> Mapping[str, Any]:
        """What the output depends on, as JSON values; the stage is skipped while they and its output stand.

        Raises UsageError for settings that cannot be.
        """

    @abstractmethod
    def plan(self, artifacts: Mapping[str, Path]) -> str:
        """What `run` would do, for `--dry-run`. Touches nothing; artifacts of planned stages may not exist yet."""

    @abstractmethod
    def run(self, artifacts: Mapping[str, Path]) -> StageResult:
        """Do it."""


class Callback:
    """Watches a run. Override the events you want; a tracker is a callback with a config.

    `on_step` is called after each optimizer step and must not read device tensors (it would synchronise).
    """

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
