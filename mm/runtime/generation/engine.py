"""The contracts of engines, rewards and tools, and the records of requests and completions."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import attrs

if TYPE_CHECKING:
    from torch import Tensor

    from mm.runtime.devices.backend import Backend
    from mm.runtime.nn.model import Model
    from mm.runtime.text.rows import Row


# (token id, log-probability) of the k likeliest tokens, the likeliest first
Likeliest = tuple[tuple[int, float], ...]


class Constraint(Protocol):
    """The state of a grammar for one completion (constrained decoding). A constraint serves one request only."""

    def allow(self, allowed_V: Tensor) -> None:
        """Set this bool row, which is on the host, to True where a token may come next and to False elsewhere. Stop tokens are
        tokens like any other: they can be drawn only where the constraint allows them."""

    def accept(self, token: int) -> None:
        """Advance by a drawn token. It is not called for the last token of the completion."""


_OPTIONAL_SAMPLING = ("repetition_penalty", "presence_penalty", "frequency_penalty", "logit_bias", "min_p")
_OPTIONAL = ("min_new_tokens", "top_logprobs", "prompt_logprobs", "constraint")


@attrs.frozen(kw_only=True)
class Sampling:
    """The settings of drawing a token, in the order in which they apply. The defaults of all but the temperature are off.

    - `repetition_penalty` r (CTRL, arXiv:1909.05858; negative logits as in transformers): the logit of a token that the prompt
      or the completion has is divided by r if it is positive, and multiplied by r if it is negative.
    - `presence_penalty` and `frequency_penalty` (OpenAI's API; between -2 and 2): the first is subtracted from the logit of a
      token that the completion has, the second once for each time that it has it.
    - `logit_bias`: (token id, number) pairs; the number is added to the logit of the token.
    - `temperature`: the logits are divided by it; 0 takes the likeliest token.
    - `top_k`, then `top_p`, then `min_p` (arXiv:2407.01082): drop all but the `top_k` likeliest tokens (0: none), all but the
      likeliest with a share `top_p` of the probability that is left, and those less likely than `min_p` times the likeliest.
    """

    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0

    @property
    def penalises(self) -> bool:
        """True if the logits depend on the tokens of the prompt or of the completion beyond what the model computes."""
        return self.repetition_penalty != 1 or self.presence_penalty != 0 or self.frequency_penalty != 0


@attrs.frozen(kw_only=True)
class Request:
    """One prompt. `key` identifies the random stream of its draws (seed, step, prompt, sample, turn), so that the result does
    not depend on the slot, the batch or the rank.

    - `stop`: the token ids that end the completion. None of them is drawn before `min_new_tokens` others were.
    - `top_logprobs`: the number of likeliest tokens that are returned for each step.
    - `prompt_logprobs`: return the log-probabilities of the prompt's tokens after its first, and their likeliest tokens.
    - `constraint`: decides before each token which ones are allowed.
    """

    ids: tuple[int, ...]
    max_new_tokens: int
    min_new_tokens: int = 0
    stop: tuple[int, ...] = ()
    sampling: Sampling = Sampling()
    key: tuple[int, ...] = (0,)
    top_logprobs: int = 0
    prompt_logprobs: bool = False
    constraint: Constraint | None = attrs.field(default=None, eq=False)

    @property
    def optional(self) -> list[str]:
        """The names of the settings that this request uses, and that an engine may refuse instead of applying them."""
        by_record = ((self, _OPTIONAL), (self.sampling, _OPTIONAL_SAMPLING))
        defaults = {field.name: field.default for record, _ in by_record for field in attrs.fields(type(record))}
        return [name for record, names in by_record for name in names if getattr(record, name) != defaults[name]]


@attrs.frozen(kw_only=True)
class Completion:
    """The generated token ids (with the stopping token), their log-probabilities and the reason why it ended: "stop", "length",
    "cancelled" or "error"; "" while it runs.

    The log-probabilities are those of the distribution that penalties, bias, `min_new_tokens`, constraint and temperature leave,
    before top-k, top-p and min-p. `top` has the `top_logprobs` likeliest tokens of that distribution for each generated one.
    `prompt_logprobs` and `prompt_top` are those of the model itself (temperature 1) for the prompt's tokens after the first.
    """

    ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish_reason: str
    top: tuple[Likeliest, ...] = ()
    prompt_logprobs: tuple[float, ...] = ()
    prompt_top: tuple[Likeliest, ...] = ()


# (index of the request, id, logprob) -> True to end the completion with this token; None and False let it go on
OnToken = Callable[[int, int, float], bool | None]


class Engine(ABC):
    """Generates completions, from token ids to token ids. `config` is an instance of the record's config class, None if it has
    none; `model` is on its device, and its weights have the type that it computes in."""

    def __init__(self, config: Any, model: Model, backend: Backend) -> None:
        self.config, self.model, self.backend = config, model, backend

    @abstractmethod
    def generate(self, requests: Sequence[Request], on_token: OnToken | None = None) -> list[Completion]:
        """The completions in the order of the requests. `on_token(index of the request, id, logprob)` is called for every token
        as it is drawn; if it returns True, the completion ends with this token, and its reason is "stop"."""

    @abstractmethod
    def update(self, named_tensors: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Copy these tensors, which are some or all of the model's by name, into the model. `version` is a number that
        identifies the weights. Raises MMError for a name that the model does not have."""

    def notes(self) -> list[str]:
        """Remarks for the user on generation with this model. They are printed once, when the engine is built."""
        return []

    def release(self) -> None:  # noqa: B027 - optional: an engine that holds nothing between calls inherits it
        """Free caches and device memory. A later `generate` builds them again."""


class Running(Protocol):
    """A request that was submitted to an engine."""

    @property
    def request(self) -> Request:
        """The request."""

    @property
    def finished(self) -> bool:
        """True once no more tokens come."""

    @property
    def cached_tokens(self) -> int:
        """The tokens of the prompt that were not read, since the cache had them."""

    @property
    def error(self) -> Exception | None:
        """The error that ended this request, with the reason "error"; None if there was none."""

    def completion(self) -> Completion:
        """The completion so far; the whole one once the request has finished."""


@runtime_checkable
class SupportsContinuous(Protocol):
    """An engine that takes requests while others run (continuous batching). One thread calls all of its methods."""

    @property
    def context_size(self) -> int | None:
        """The most tokens that prompt and completion of a submitted request may have together; None: any number."""

    def submit(self, request: Request, on_token: OnToken | None = None) -> Running:
        """Queue a request. `on_token` is called as in `Engine.generate`, with index 0, during `step`; `Running.completion()` has
        the token already. An exception of `on_token` ends this request, and no other. Raises UsageError at once for a request
        that cannot be served."""

    def cancel(self, running: Running) -> None:
        """End a request, with the reason "cancelled", and free its slot before the next forward. Nothing happens if it has
        finished."""

    def step(self) -> list[Running]:
        """Run one forward: over a chunk of prompts, or over one token for each request. Returns the requests that ended with it.
        If the forward itself fails, it ends the requests that were in the cache, and raises the error."""

    @property
    def busy(self) -> bool:
        """True while a submitted request has not finished."""


class Reward(ABC):
    """A score of completions."""

    def __init__(self, config: Any) -> None:
        self.config = config

    @abstractmethod
    def __call__(self, rows: Sequence[Row], completions: Sequence[str]) -> list[float | None]:
        """One score for each completion; None where the reward does not apply."""

    def advice(self) -> str:
        """A sentence for the user if the scores so far teach nothing for a reason that the reward knows, with the cure; "" else.
        It is asked after each rollout, and printed once."""
        return ""


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
