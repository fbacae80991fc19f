"""The requests of the local engine while they run: their tokens so far, and where their prompts are read."""

from __future__ import annotations

import attrs

from mm.contracts import Completion, OnToken, Request
from mm.runtime.training.context import stable_seed

Likeliest = tuple[tuple[int, float], ...]


@attrs.define(eq=False)
class Row:
    """A request with the tokens generated so far: a `Running`. `index` is its place among the requests of a call; `reason` is
    the finish reason, and empty until it has finished. Its prompt has been read once it has a token."""

    index: int
    request: Request
    on_token: OnToken | None = None
    ids: list[int] = attrs.field(factory=list)
    logprobs: list[float] = attrs.field(factory=list)
    top: list[Likeliest] = attrs.field(factory=list)
    prompt_logprobs: tuple[float, ...] = ()
    prompt_top: tuple[Likeliest, ...] = ()
    cached_tokens: int = 0
    reason: str = ""
    error: Exception | None = None
    seed: int = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.seed = stable_seed(*self.request.key)
        if not self.request.max_new_tokens and not self.request.prompt_logprobs:
            self.reason = "length"

    @property
    def finished(self) -> bool:
        """See `Running`."""
        return bool(self.reason)

    def append(self, token: int, logprob: float, top: Likeliest = ()) -> None:
        """Append a drawn token, and set `reason` if it is the last one."""
        self.ids.append(token)
        self.logprobs.append(logprob)
        if self.request.top_logprobs:
            self.top.append(top)
        if token in self.request.stop:
            self.reason = "stop"
        elif len(self.ids) == self.request.max_new_tokens:
            self.reason = "length"

    def fail(self, error: BaseException) -> None:
        """End the request by an error."""
        self.reason = "error"
        self.error = error if isinstance(error, Exception) else InterruptedError("The generation was interrupted.")

    def completion(self) -> Completion:
        """The tokens generated so far, as a completion."""
        return Completion(
            ids=tuple(self.ids), logprobs=tuple(self.logprobs), finish_reason=self.reason, top=tuple(self.top),
            prompt_logprobs=self.prompt_logprobs, prompt_top=self.prompt_top,
        )  # fmt: skip


@attrs.define(eq=False)
class Placed:
    """A row whose prompt is being read into its slot, which holds the first `known` tokens already. `twins` are the slots of
    further rows with the same prompt, which are copied from this one once the prompt has been read."""

    row: Row
    slot: int
    known: int
    twins: list[int] = attrs.field(factory=list)

    @property
    def unread(self) -> int:
        """The tokens of the prompt that the slot does not hold."""
        return len(self.row.request.ids) - self.known


def chunk_of(reading: list[Placed], budget: int | None) -> list[tuple[Placed, int]]:
    """(prompt, the number of its next tokens) to read in one forward of at most `budget` tokens, all of them if it is None.

    Half of the tokens are for the oldest prompt, so that it is read in the end; the others for the shortest ones, which do not
    wait for a long one before them.
    """
    if budget is None:
        return [(placed, placed.unread) for placed in reading]
    share = {id(reading[0]): min(reading[0].unread, (budget + 1) // 2)}
    left = budget - share[id(reading[0])]
    for placed in sorted(reading, key=lambda one: one.unread):
        more = min(placed.unread - share.get(id(placed), 0), left)
        share[id(placed)] = share.get(id(placed), 0) + more
        left -= more
    return [(placed, share[id(placed)]) for placed in reading if share[id(placed)]]
