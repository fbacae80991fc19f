"""An engine of a tiny model, requests for it, and the logits of that model itself: the base of the checks of engines."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor

from mm.core.records import EngineSpec
from mm.runtime.devices.backend import Backend
from mm.runtime.generation.engine import Completion, Engine, Request, Sampling
from mm.runtime.nn.batch import Tokens, Unit, pack
from mm.runtime.nn.model import Model
from mm.testing.suites.check import Skip
from mm.testing.suites.suite import Suite
from mm.testing.suites.tensors import documents

_LENGTHS = (5, 2, 9, 1, 5)  # of the prompts
_NEW = (4, 7, 3, 6, 5)  # tokens of the completions
GREEDY, _DRAWN = Sampling(temperature=0.0), Sampling(temperature=0.8)


class TriedEngine(Suite):
    """An engine with its default settings and a tiny model in float32. `make_model(seed)` makes that model;
    `backend` is one that the engine runs on, None if there is none here."""

    contract: ClassVar[type | None] = Engine

    def __init__(
        self, spec: EngineSpec, make_model: Callable[[int], Model], backend: Backend | None, module: str | None = None
    ) -> None:
        super().__init__(spec, module)
        self.record, self.make_model, self.backend = spec, make_model, backend

    def make(self, model: Model | None = None) -> Engine:
        """A new engine, of this model. Raises Skip if none of its backends is here."""
        if self.backend is None:
            raise Skip(f"it runs on {', '.join(self.record.backends)}, and none of them is here")
        model = (model or self.make_model(0).eval()).to(self.backend.device(0))
        engine: Engine = self.record.load()(self.record.config() if self.record.config else None, model, self.backend)
        return engine

    @cached_property
    def engine(self) -> Engine:
        """The engine of all checks that do not change its weights."""
        return self.make()

    @cached_property
    def model(self) -> Model:
        """A model with the engine's weights, on the CPU."""
        return self.make_model(0).eval()

    @cached_property
    def greedy(self) -> list[Request]:
        """Requests without randomness, with different prompts and lengths of completions, neither of them in ascending order."""
        prompts = [unit.sequences[0].ids.tolist() for unit in documents(_LENGTHS, self.model.config.vocab_size, seed=2)]
        return [Request(ids=tuple(p), max_new_tokens=n, sampling=GREEDY) for p, n in zip(prompts, _NEW, strict=True)]

    @cached_property
    def drawn(self) -> list[Request]:
        """Requests that draw, each with a key of its own; the first three have one prompt."""
        prompts = [self.greedy[0].ids] * 3 + [request.ids for request in self.greedy[1:]]
        return [Request(ids=ids, max_new_tokens=8, sampling=_DRAWN, key=(1, i)) for i, ids in enumerate(prompts)]

    def generate(self, requests: Sequence[Request], engine: Engine | None = None) -> list[Completion]:
        """The completions. Raises AssertionError unless they are as many as the requests."""
        found = (engine or self.engine).generate(requests)
        assert isinstance(found, list) and len(found) == len(requests), f"{len(requests)} requests give {_size(found)}"
        assert all(isinstance(one, Completion) for one in found), f"generate returns {type(found[0]).__name__}, not Completion"
        return found

    def penalised(self, request: Request) -> tuple[int, ...]:
        """The likeliest tokens, after the request's penalties if it has some, by full forwards."""
        sampling, drawn = request.sampling, list[int]()
        for _ in range(request.max_new_tokens):
            logits_V = self.logits([*request.ids, *drawn])[-1].double()
            seen = sorted({*request.ids, *drawn})
            values = logits_V[seen]
            logits_V[seen] = torch.where(values > 0, values / sampling.repetition_penalty, values * sampling.repetition_penalty)
            for token in set(drawn):
                logits_V[token] -= sampling.presence_penalty + sampling.frequency_penalty * drawn.count(token)
            drawn.append(int(logits_V.argmax()))
        return tuple(drawn)

    def error_of_logprobs(self, request: Request, completion: Completion) -> float:
        """The largest difference of a completion's log-probabilities from the model's, before top-k and top-p."""
        given, size = len(completion.logprobs), len(completion.ids)
        assert given == size, f"{given} log-probabilities of {size} tokens"
        logits_nV = self.logits([*request.ids, *completion.ids])[len(request.ids) - 1 : -1]
        expected = (logits_nV / (request.sampling.temperature or 1.0)).log_softmax(-1)
        pairs = enumerate(zip(completion.ids, completion.logprobs, strict=True))
        return max((abs(float(expected[step, token]) - value) for step, (token, value) in pairs), default=0.0)

    def logits(self, ids: Sequence[int], model: Model | None = None) -> Tensor:
        with torch.no_grad():
            logits_TV: Tensor = (model or self.model)(pack([Unit((Tokens(torch.tensor(ids)),))]))[0]
        return logits_TV


def _size(found: Any) -> str:
    return f"{len(found)} completions" if isinstance(found, list | tuple) else f"a {type(found).__name__}"
