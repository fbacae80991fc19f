"""The checks that every engine must pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, ClassVar

import attrs
import torch
from torch import Tensor

from mm.core.records import EngineSpec
from mm.runtime.devices.backend import Backend
from mm.runtime.generation.engine import Completion, Engine, Request, Sampling
from mm.runtime.models.tensors import named_tensors
from mm.runtime.nn.batch import Tokens, Unit, pack
from mm.runtime.nn.model import Model
from mm.testing.suites.check import Skip
from mm.testing.suites.running import about
from mm.testing.suites.suite import Suite
from mm.testing.suites.tensors import documents

_LENGTHS = (5, 2, 9, 1, 5)  # of the prompts
_NEAR = 1e-3  # tolerance for log-probabilities of an engine that sums in another order
_GREEDY, _DRAWN = Sampling(temperature=0.0), Sampling(temperature=0.8)


class EngineSuite(Suite):
    """The checks of an engine, with its default settings and a tiny model in float32. `make_model(seed)` makes that model;
    `backend` is one that the engine runs on, None if there is none here."""

    contract: ClassVar[type | None] = Engine

    def __init__(
        self, spec: EngineSpec, make_model: Callable[[int], Model], backend: Backend | None, module: str | None = None
    ) -> None:
        super().__init__(spec, module)
        self.record, self.make_model, self.backend = spec, make_model, backend

    def make(self) -> Engine:
        """A new engine. Raises Skip if none of its backends is here."""
        if self.backend is None:
            raise Skip(f"it runs on {', '.join(self.record.backends)}, and none of them is here")
        model = self.make_model(0).eval().to(self.backend.device(0))
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
        """Requests without randomness, with different prompts and lengths of completions."""
        prompts = [unit.sequences[0].ids.tolist() for unit in documents(_LENGTHS, self.model.config.vocab_size, seed=2)]
        return [Request(ids=tuple(ids), max_new_tokens=3 + i, sampling=_GREEDY) for i, ids in enumerate(prompts)]

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

    def check_building(self) -> str:
        """It is built with (config, model, backend), and its notes are lines of text."""
        notes = self.engine.notes()
        assert all(isinstance(note, str) for note in notes), f"notes returns {notes!r}"
        return "; ".join(notes)

    @about("generate")
    def check_greedy(self) -> None:
        """At temperature 0 the tokens are those of full forwards, in the order of the requests; no request gives none."""
        for request, completion in zip(self.greedy, self.generate(self.greedy), strict=True):
            ids = list(request.ids)
            for _ in range(request.max_new_tokens):
                ids.append(int(self._logits(ids)[-1].argmax()))
            expected = tuple(ids[len(request.ids) :])
            assert completion.ids == expected, f"{completion.ids} for prompt {request.ids}, a full forward gives {expected}"
        assert self.generate([]) == [], "no requests must give no completions"

    @about("generate")
    def check_length(self) -> None:
        """A completion has at most `max_new_tokens` tokens, and then ends with the reason "length"."""
        for request, completion in zip(self.greedy, self.generate(self.greedy), strict=True):
            size, reason = len(completion.ids), completion.finish_reason
            assert size == request.max_new_tokens, f"{size} tokens, and max_new_tokens is {request.max_new_tokens}"
            assert reason == "length", f"finish_reason is {reason!r} after max_new_tokens"

    @about("generate")
    def check_stop(self) -> None:
        """A stop token ends the completion, is its last token, and the reason is "stop"."""
        self.require("check_greedy")
        whole = self.generate(self.greedy)
        requests = [attrs.evolve(r, stop=(c.ids[1],)) for r, c in zip(self.greedy, whole, strict=True)]
        for request, before, completion in zip(requests, whole, self.generate(requests), strict=True):
            expected = before.ids[: before.ids.index(request.stop[0]) + 1]
            assert completion.ids == expected, f"{completion.ids} with stop {request.stop}, expected {expected}"
            assert completion.finish_reason == "stop", f"finish_reason is {completion.finish_reason!r} after a stop token"

    @about("generate")
    def check_keyed_draws(self) -> None:
        """A request's draws depend on its key alone: not on the other requests, their order, or earlier calls."""
        together, turned = self.generate(self.drawn), self.generate(self.drawn[::-1])[::-1]
        for request, one, other in zip(self.drawn, together, turned, strict=True):
            assert one.ids == other.ids, f"key {request.key} draws {one.ids}, and {other.ids} in another order of requests"
            (alone,) = self.generate([request])
            assert one.ids == alone.ids, f"key {request.key} draws {one.ids} with other requests, and {alone.ids} alone"
        assert len({completion.ids for completion in together[:3]}) > 1, "requests of other keys draw the same tokens"

    @about("generate")
    def check_logprobs(self) -> str:
        """There is one log-probability for each token: the model's, at the request's temperature."""
        errors = [0.0]
        for request, completion in zip(self.drawn, self.generate(self.drawn), strict=True):
            given, size = len(completion.logprobs), len(completion.ids)
            assert given == size, f"{given} log-probabilities of {size} tokens"
            logits_nV = self._logits([*request.ids, *completion.ids])[len(request.ids) - 1 : -1]
            expected = (logits_nV / request.sampling.temperature).log_softmax(-1)
            for step, (token, value) in enumerate(zip(completion.ids, completion.logprobs, strict=True)):
                errors.append(abs(float(expected[step, token]) - value))
        assert max(errors) <= _NEAR, f"a log-probability differs from the model's by {max(errors):.3g}"
        return f"largest error {max(errors):.1g}"

    @about("generate")
    def check_filters(self) -> None:
        """`top_k` 1, and a small `top_p`, leave only the likeliest token."""
        self.require("check_greedy")
        expected = [one.ids for one in self.generate(self.greedy)]
        for name, sampling in (("top_k=1", Sampling(top_k=1)), ("top_p=1e-6", Sampling(top_p=1e-6))):
            found = self.generate([attrs.evolve(request, sampling=sampling) for request in self.greedy])
            assert [one.ids for one in found] == expected, f"{name} draws another token than the likeliest"

    @about("generate")
    def check_on_token(self) -> None:
        """`on_token` is called with the tokens and log-probabilities of each completion, in their order."""
        seen: dict[int, list[tuple[int, float]]] = {}

        def note(index: int, token: int, logprob: float) -> None:
            seen.setdefault(index, []).append((token, logprob))

        found = self.engine.generate(self.drawn, note)
        for index, completion in enumerate(found):
            expected = list(zip(completion.ids, completion.logprobs, strict=True))
            assert seen.get(index) == expected, f"on_token had {seen.get(index)} of request {index}, which has {expected}"

    @about("release")
    def check_release(self) -> None:
        """After `release` the engine generates the same again."""
        before = [one.ids for one in self.generate(self.drawn)]
        self.engine.release()
        assert [one.ids for one in self.generate(self.drawn)] == before, "other completions after release"

    @about("update")
    def check_update(self) -> None:
        """After `update` the engine generates with the new weights."""
        engine, other = self.make(), self.make_model(1).eval()
        before = self.generate(self.drawn, engine)
        tensors = named_tensors(other)
        engine.update(((name, tensor.clone()) for name, tensor in tensors.items()), version=1)
        after = self.generate(self.drawn, engine)
        assert [one.ids for one in after] != [one.ids for one in before], "update did not change what is generated"
        request = attrs.evolve(self.greedy[0], max_new_tokens=1)
        (found,) = self.generate([request], engine)
        expected = int(self._logits(list(request.ids), other)[-1].argmax())
        assert found.ids == (expected,), f"after update {found.ids[0]} is drawn, and the new weights give {expected}"

    def _logits(self, ids: Sequence[int], model: Model | None = None) -> Tensor:
        with torch.no_grad():
            logits_TV: Tensor = (model or self.model)(pack([Unit((Tokens(torch.tensor(ids)),))]))[0]
        return logits_TV


def _size(found: Any) -> str:
    return f"{len(found)} completions" if isinstance(found, list | tuple) else f"a {type(found).__name__}"
