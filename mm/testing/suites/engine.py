"""The checks that every engine must pass."""

from __future__ import annotations

import attrs
import torch

from mm.core.errors import MMError, UsageError
from mm.runtime.generation.engine import Request, Sampling
from mm.runtime.models.tensors import named_tensors
from mm.runtime.text.wording import error_text
from mm.testing.suites.running import about
from mm.testing.suites.tried_engine import GREEDY, TriedEngine

_NEAR = 1e-3  # tolerance for log-probabilities of an engine that sums in another order
_OPTIONAL = {
    "min_p=1": Sampling(min_p=1.0), "repetition_penalty=1.3": Sampling(temperature=0.0, repetition_penalty=1.3),
    "presence_penalty=2": Sampling(temperature=0.0, presence_penalty=2.0),
    "frequency_penalty=2": Sampling(temperature=0.0, frequency_penalty=2.0),
}  # fmt: skip
_FILTERED = (Sampling(temperature=0.8, top_k=3), Sampling(temperature=0.8, top_p=0.5), GREEDY)


class EngineSuite(TriedEngine):
    """The checks of an engine."""

    def check_building(self) -> str:
        """It is built with (config, model, backend), and its notes are lines of text."""
        notes = self.engine.notes()
        assert all(isinstance(note, str) for note in notes), f"notes returns {notes!r}"
        return "; ".join(notes)

    @about("generate")
    def check_greedy(self) -> None:
        """At temperature 0 the tokens are those of full forwards, in the order of the requests; no request gives none."""
        found = [completion.ids for completion in self.generate(self.greedy)]
        expected = [self.penalised(request) for request in self.greedy]
        if found != expected and sorted(found) == sorted(expected):
            first = next(index for index, ids in enumerate(found) if ids != expected[index])
            other = f"request {first} is given the completion of request {expected.index(found[first])}"
            raise AssertionError(f"the order of the completions is not that of the requests: {other}. Sort them back")
        for request, ids, right in zip(self.greedy, found, expected, strict=True):
            assert ids == right, f"{ids} for prompt {request.ids}, a full forward gives {right}"
        assert self.generate([]) == [], "no requests must give no completions"

    @about("generate")
    def check_length(self) -> None:
        """A completion has at most `max_new_tokens` tokens, and then ends with the reason "length"."""
        self.require("check_greedy")
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
        self.require("check_greedy")
        together, turned = self.generate(self.drawn), self.generate(self.drawn[::-1])[::-1]
        for request, one, other in zip(self.drawn, together, turned, strict=True):
            assert one.ids == other.ids, f"key {request.key} draws {one.ids}, and {other.ids} in another order of requests"
            (alone,) = self.generate([request])
            assert one.ids == alone.ids, f"key {request.key} draws {one.ids} with other requests, and {alone.ids} alone"
        assert len({completion.ids for completion in together[:3]}) > 1, "requests of other keys draw the same tokens"

    @about("generate")
    def check_logprobs(self) -> str:
        """There is one log-probability for each token: the model's, at the request's temperature."""
        self.require("check_keyed_draws")
        error = max(map(self.error_of_logprobs, self.drawn, self.generate(self.drawn)))
        assert error <= _NEAR, f"a log-probability differs from the model's by {error:.3g}"
        return f"largest error {error:.1g}"

    @about("generate")
    def check_logprobs_before_filters(self) -> None:
        """Log-probabilities are those before top-k and top-p, and at temperature 1 if the tokens are the likeliest ones."""
        self.require("check_logprobs")
        for sampling in _FILTERED:
            requests = [attrs.evolve(request, sampling=sampling) for request in self.drawn]
            error = max(map(self.error_of_logprobs, requests, self.generate(requests)))
            with_, before = ("temperature 0", "at temperature 1") if sampling is GREEDY else (
                f"top_k={sampling.top_k}" if sampling.top_k else f"top_p={sampling.top_p}", "before that filter")  # fmt: skip
            assert error <= _NEAR, f"with {with_} a log-probability differs from the model's {before} by {error:.3g}"

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
            assert index in seen, f"on_token is not called for the {len(expected)} tokens of request {index}"
            tokens = [token for token, _ in seen[index]]
            assert tokens == list(completion.ids), (
                f"on_token is called with the tokens {tokens} of request {index}, whose completion is {list(completion.ids)}"
            )
            assert seen[index] == expected, f"on_token is called with other log-probabilities than request {index} returns"

    @about("generate")
    def check_keys_are_sequences(self) -> None:
        """The order of a key's numbers counts: samples and turns of one prompt have keys of the same numbers."""
        self.require("check_keyed_draws")
        requests = [attrs.evolve(self.drawn[0], max_new_tokens=16, key=key) for key in ((1, 2, 3), (2, 1, 3), (3, 2, 1))]
        found = [one.ids for one in self.generate(requests)]
        assert len(set(found)) > 1, f"the keys {', '.join(str(r.key) for r in requests)} draw the same tokens: their order counts"

    @about("generate")
    def check_the_model_stays_as_it_is(self) -> None:
        """`generate` changes neither weights nor `requires_grad` nor the mode: in training the model is the policy itself."""
        self.require("check_keyed_draws")
        model = self.make_model(0).train()
        engine = self.make(model)
        before = {name: (p.detach().clone(), p.requires_grad) for name, p in model.named_parameters()}
        self.generate(self.drawn, engine)
        for name, tensor in model.named_parameters():
            value, learned = before[name]
            assert torch.equal(tensor, value), f"generate changes the model's tensor {name}"
            assert tensor.requires_grad == learned, f"generate sets requires_grad of {name} to {tensor.requires_grad}"
        assert model.training, "generate leaves the model in eval(): set the mode back"

    @about("generate")
    def check_on_token_ends(self) -> None:
        """A completion for which `on_token` returns True ends with that token, and its reason is "stop"."""
        self.require("check_on_token")
        whole = self.generate(self.drawn)
        for index, completion in enumerate(self.engine.generate(self.drawn, lambda index, token, logprob: index == 0)):
            ids = completion.ids[:1] if index == 0 else whole[index].ids
            assert completion.ids == ids, f"on_token returns True for request 0, and request {index} has {completion.ids}"
            assert index or completion.finish_reason == "stop", f"on_token has ended it: reason {completion.finish_reason!r}"

    @about("generate")
    def check_refused_requests(self) -> str:
        """A request that cannot be served, with an empty prompt or more tokens than the model has positions, raises UsageError,
        and the next `generate` works."""
        for check in ("check_greedy", "check_on_token_ends"):
            self.require(check)
        positions = self.model.config.max_position_embeddings
        requests = {"an empty prompt": Request(ids=(), max_new_tokens=2, sampling=GREEDY)}
        if positions is not None:
            long = attrs.evolve(self.greedy[0], max_new_tokens=positions)
            requests[f"{len(long.ids)} tokens and {positions} new ones, and the model has {positions} positions"] = long
        before = [one.ids for one in self.generate(self.greedy)]
        for what, request in requests.items():
            try:
                self.engine.generate([self.greedy[0], request], lambda *seen: True)
            except UsageError:
                again = [one.ids for one in self.generate(self.greedy)]
                assert again == before, f"after a UsageError for {what} other completions are generated"
                continue
            except Exception as error:
                raise AssertionError(f"generate raises {error_text(error)} for {what}, not UsageError") from error
            raise AssertionError(f"generate takes a request with {what}: raise UsageError")
        return "; ".join(requests)

    @about("generate")
    def check_penalties_and_min_p(self) -> str:
        """Penalties and `min_p` are applied, or refused by an error that the user reads; they are never ignored."""
        self.require("check_greedy")
        refused = []
        for name, sampling in _OPTIONAL.items():
            requests = [attrs.evolve(request, sampling=sampling) for request in self.greedy]
            try:
                found = self.generate(requests)
            except MMError:
                refused.append(name)
                continue
            for request, completion in zip(requests, found, strict=True):
                expected = self.penalised(request)
                assert completion.ids == expected, f"with {name} {completion.ids} for prompt {request.ids}, expected {expected}"
        return f"refused: {', '.join(refused)}" if refused else ""

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
        expected = int(self.logits(list(request.ids), other)[-1].argmax())
        assert found.ids == (expected,), f"after update {found.ids[0]} is drawn, and the new weights give {expected}"

    @about("update")
    def check_unknown_tensor(self) -> None:
        """`update` raises MMError for a name that the model does not have: that tensor would be lost without a word."""
        self.require("check_update")
        name = "surely.no.such.tensor"
        try:
            self.make().update([(name, torch.zeros(1))], version=1)
        except MMError as error:
            assert name in str(error), f"the error of update does not name {name}: {error}"
            return
        except Exception as error:
            told = f"for a name that the model does not have update raises {error_text(error)}, not MMError"
            raise AssertionError(told) from error
        raise AssertionError("update skips a tensor whose name the model does not have: raise MMError naming it")
