"""The contracts of engines, rewards and tools, and the records of requests and completions."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import attrs

if TYPE_CHECKING:
    from torch import Tensor

    from mm.runtime.devices.backend import Backend
    from mm.runtime.nn.model import Model
    from mm.runtime.text.rows import Row


@attrs.frozen(kw_only=True)
class Sampling:
    """The settings of drawing tokens. `temperature` 0 is greedy; `top_k` 0 and `top_p` 1 switch these filters off."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0


@attrs.frozen(kw_only=True)
class Request:
    """One prompt. `key` identifies the random stream of its draws (seed, step, prompt, sample, turn), so that the result does
    not depend on the slot, the batch or the rank. `stop` are the token ids that end the completion."""

    ids: tuple[int, ...]
    max_new_tokens: int
    stop: tuple[int, ...] = ()
    sampling: Sampling = Sampling()
    key: tuple[int, ...] = (0,)


@attrs.frozen(kw_only=True)
class Completion:
    """The generated token ids (with the stopping token), their log-probabilities under the sampling distribution before top-k
    and top-p, and the reason why it ended: "stop" or "length"."""

    ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish_reason: str


OnToken = Callable[[int, int, float], None]


class Engine(ABC):
    """Generates completions, from token ids to token ids. `config` is an instance of the record's config class, None if it has
    none; `model` is on its device, and its weights have the type that it computes in."""

    def __init__(self, config: Any, model: Model, backend: Backend) -> None:
        self.config, self.model, self.backend = config, model, backend

    @abstractmethod
    def generate(self, requests: Sequence[Request], on_token: OnToken | None = None) -> list[Completion]:
        """The completions in the order of the requests. `on_token(index of the request, id, logprob)` is called for every token
        as it is drawn."""

    @abstractmethod
    def update(self, named_tensors: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Copy these tensors, which are some or all of the model's by name, into the model. `version` is a number that
        identifies the weights. Raises MMError for a name that the model does not have."""

    def notes(self) -> list[str]:
        """Remarks for the user on generation with this model. They are printed once, when the engine is built."""
        return []

    def release(self) -> None:  # noqa: B027 - optional: an engine that holds nothing between calls inherits it
        """Free caches and device memory. A later `generate` builds them again."""


class Reward(ABC):
    """A score of completions."""

    def __init__(self, config: Any) -> None:
        self.config = config

    @abstractmethod
    def __call__(self, rows: Sequence[Row], completions: Sequence[str]) -> list[float | None]:
        """One score for each completion; None where the reward does not apply."""


class Tool(ABC):
    """A tool that a model can call. `schema` is its function schema: name, description, JSON-schema parameters. A call may take
    `time_limit` seconds; it runs in a thread of its own."""

    schema: Mapping[str, Any]
    time_limit: float = 30.0

    def __init__(self, config: Any) -> None:
        self.config = config

    @abstractmethod
    def __call__(self, arguments: Mapping[str, Any]) -> Any:
        """The result, a JSON value. Raises ValueError for invalid arguments; the model reads its text."""
