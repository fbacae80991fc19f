"""The checks of what an engine may offer beyond plain completions: options of a request, and requests that come one by one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, ClassVar

import attrs

from mm.core.errors import MMError, UsageError
from mm.runtime.generation.engine import Completion, Request, Running, SupportsContinuous
from mm.runtime.text.wording import error_text
from mm.testing.suites.check import Skip
from mm.testing.suites.engine import EngineSuite
from mm.testing.suites.running import about

if TYPE_CHECKING:
    from torch import Tensor

_NEAR = 1e-3  # tolerance for log-probabilities
_FORWARDS = 1000  # more than the requests here can take


class Only:
    """A constraint that allows one token."""

    def __init__(self, token: int) -> None:
        self.token = token

    def allow(self, allowed_V: Tensor) -> None:
        """See `Constraint`."""
        allowed_V.zero_()
        allowed_V[self.token] = True

    def accept(self, token: int) -> None:
        """See `Constraint`."""


class ContinuousEngineSuite(EngineSuite):
    """The checks of an engine. Those of `SupportsContinuous` are skipped if it is not one."""

    optional: ClassVar[tuple[type, ...]] = (SupportsContinuous,)

    @about("generate")
    def check_request_options(self) -> str:
        """`logit_bias`, `min_new_tokens`, `top_logprobs`, `prompt_logprobs` and `constraint` are applied, or refused by an error
        that the user reads; they are never ignored."""
        self.require("check_greedy")
        refused = []
        for name, request, applied in self._options():
            try:
                (found,) = self.generate([request])
            except MMError:
                refused.append(name)
                continue
            assert applied(found), f"{name} is ignored: the completion is {found}"
        return f"refused: {', '.join(refused)}" if refused else ""

    def _options(self) -> Iterator[tuple[str, Request, Callable[[Completion], bool]]]:
        """(name, a request that uses the option, the test of its completion)."""
        request = self.greedy[0]
        likeliest = self.penalised(request)
        rare = int(self.logits(list(request.ids))[-1].argmin())
        forced = (rare,) * request.max_new_tokens
        sampling = attrs.evolve(request.sampling, logit_bias=((rare, 100.0),))
        yield "logit_bias", attrs.evolve(request, sampling=sampling), lambda found: found.ids == forced
        stopped = attrs.evolve(request, stop=likeliest[:1], min_new_tokens=2)
        yield "min_new_tokens", stopped, lambda found: len(found.ids) > 2 and likeliest[0] not in found.ids[:2]
        top = tuple((token, rank) for rank, token in enumerate(likeliest))
        yield "top_logprobs", attrs.evolve(request, top_logprobs=2), lambda found: (
            tuple((pairs[0][0], rank) for rank, pairs in enumerate(found.top)) == top and {len(p) for p in found.top} == {2}
        )
        logprobs = self.logits(list(request.ids)).log_softmax(-1)
        expected = [float(logprobs[place, token]) for place, token in enumerate(request.ids[1:])]
        yield "prompt_logprobs", attrs.evolve(request, prompt_logprobs=True), lambda found: _near(found.prompt_logprobs, expected)
        yield "constraint", attrs.evolve(request, constraint=Only(rare)), lambda found: found.ids == forced

    @about("submit", "step")
    def check_submitted_requests(self) -> None:
        """Requests that are submitted, in any order and while others run, get the completions of `generate`. `step` returns each
        of them once, and the engine is busy until then."""
        engine = self._continuous()
        for check in ("check_greedy", "check_logprobs"):
            self.require(check)
        asked = [*self.drawn, *self.greedy]
        expected = {id(r): c for r, c in zip(asked, [*self.generate(self.drawn), *self.generate(self.greedy)], strict=True)}
        for order, steps in ((asked, 0), (asked[::-1], 1), (asked[1::2] + asked[::2], 2)):
            for request, (one, told) in zip(order, self._submitted(engine, order, steps), strict=True):
                found, right = one.completion(), expected[id(request)]
                assert (found.ids, found.finish_reason) == (right.ids, right.finish_reason), (
                    f"a submitted request gives {found}, and generate {right}"
                )
                assert _near(found.logprobs, right.logprobs), f"log-probabilities {found.logprobs}, generate {right.logprobs}"
                assert told == list(found.ids), f"on_token is called with {told}, and the completion has {list(found.ids)}"

    def _submitted(
        self, engine: SupportsContinuous, order: Sequence[Request], steps: int
    ) -> Sequence[tuple[Running, list[int]]]:
        """(each request, the tokens that it told), all at their ends. `steps` forwards lie between two of them."""
        told: list[list[int]] = [[] for _ in order]
        running, ended = list[Running](), list[Running]()
        for request, tokens in zip(order, told, strict=True):
            running.append(engine.submit(request, lambda index, token, logprob, to=tokens: to.append(token)))  # type: ignore[misc]
            ended += [one for _ in range(steps) for one in engine.step()]
        ended += self._finish(engine)
        times = [sum(one is other for other in ended) for one in running]
        assert set(times) == {1}, f"step returns the requests {times} times: each once, when it has ended"
        assert all(one.finished for one in running), "a request that step has returned is not finished"
        return list(zip(running, told, strict=True))

    @about("cancel")
    def check_cancel(self) -> None:
        """A cancelled request ends with the reason "cancelled", also before its first token, and the others are not harmed."""
        engine = self._continuous()
        self.require("check_submitted_requests")
        expected = self.generate(self.drawn)
        running = [engine.submit(request) for request in self.drawn]
        engine.cancel(running[0])
        for _ in range(3):
            engine.step()
        engine.cancel(running[1])
        self._finish(engine)
        for place, (one, right) in enumerate(zip(running, expected, strict=True)):
            found = one.completion()
            if place > 1:
                assert found.ids == right.ids, f"beside a cancelled request {found.ids} are drawn, else {right.ids}"
                continue
            assert one.finished and found.finish_reason == "cancelled", f"finish_reason {found.finish_reason!r} after cancel"
            size = len(found.ids)
            assert size < len(right.ids) and found.ids == right.ids[:size], f"{found.ids} before cancel, expected {right.ids}"

    @about("submit")
    def check_refused_submissions(self) -> None:
        """`submit` raises UsageError at once for a request that cannot be served, and the others go on."""
        engine = self._continuous()
        self.require("check_submitted_requests")
        (expected,) = self.generate(self.greedy[:1])
        running = engine.submit(self.greedy[0])
        try:
            engine.submit(attrs.evolve(self.greedy[0], ids=()))
        except UsageError:
            self._finish(engine)
            assert running.completion().ids == expected.ids, "a refused request changes another one"
            return
        except Exception as error:
            raise AssertionError(f"submit raises {error_text(error)} for an empty prompt, not UsageError") from error
        raise AssertionError("submit takes a request with an empty prompt: raise UsageError")

    def _continuous(self) -> SupportsContinuous:
        engine = self.make()
        if not isinstance(engine, SupportsContinuous):
            raise Skip("it takes no requests while others run (SupportsContinuous)")
        return engine

    def _finish(self, engine: SupportsContinuous) -> list[Running]:
        ended: list[Running] = []
        for _ in range(_FORWARDS):
            if not engine.busy:
                return ended
            ended += engine.step()
        raise AssertionError(f"the engine is still busy after {_FORWARDS} steps")


def _near(found: Sequence[float], expected: Sequence[float]) -> bool:
    return len(found) == len(expected) and all(abs(a - b) <= _NEAR for a, b in zip(found, expected, strict=True))
