"""Comparing what another program makes of a written model with what our own model does."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import attrs

from mm.core.errors import MMError
from mm.runtime.generation.verification.cases import Case
from mm.runtime.text.tokenizer import Tokenizer

# a log-probability whose probability is zero in float32
_NOTHING = -80.0


@attrs.define
class Verdict:
    """The numbers of equal `prompts` of those that the program `told`, of equal `replies` and reasons to stop (`stops`) of all
    `cases`, and of `tokens` of `all_tokens` in replies up to the first different one. `largest` is the largest difference of the
    log-probabilities that were `compared`, and `first` names the first difference ("": none).

    A reply is no difference but one of the `ties` if its first different token comes where the log-probability of ours is less
    than twice the bound above that of the next likely one: each of the two may be off by the bound.
    """

    bound: float
    cases: int = 0
    told: int = 0
    prompts: int = 0
    replies: int = 0
    stops: int = 0
    tokens: int = 0
    all_tokens: int = 0
    ties: int = 0
    largest: float = 0.0
    compared: int = 0
    first: str = ""

    def lines(self, engine: str) -> list[str]:
        """The verdict for the user."""
        ties = f", {self.ties} part{'s' if self.ties == 1 else ''} at a tie" if self.ties else ""
        within = f"within {self.largest:.1e} (bound {self.bound:g}; {self.compared:,} compared)"
        return [
            f"{engine}:",
            f"  prompts           {f'{self.prompts} of {self.told} equal' if self.told else 'not told'}",
            f"  greedy replies    {self.replies} of {self.cases} equal ({self.tokens:,} of {self.all_tokens:,} tokens{ties})",
            f"  reasons to stop   {self.stops} of {self.cases} equal",
            f"  log-probabilities {within if self.compared else 'not told'}",
        ]


def compare(cases: Sequence[Case], results: Sequence[Mapping[str, Any]], tokenizer: Tokenizer, bound: float) -> Verdict:
    """The verdict on the results of a verifier's program, one for each case. Raises MMError for results without their form."""
    if len(results) != len(cases):
        raise MMError(f"The verifier's program gave {len(results)} results for {len(cases)} conversations.")
    verdict = Verdict(bound, cases=len(cases))
    for number, (case, result) in enumerate(zip(cases, results, strict=True), 1):
        prompt = _prompt(case, result, tokenizer)
        told = result["text"] is not None or result["ids"] is not None
        verdict.told, verdict.prompts = verdict.told + told, verdict.prompts + (told and not prompt)
        found = (prompt, *_reply(case, result, tokenizer, verdict), _logprobs(case, result, tokenizer, verdict))
        if (first := next(filter(None, found), "")) and not verdict.first:
            verdict.first = f"conversation {number} ({case}): {first}"
    return verdict


def _prompt(case: Case, result: Mapping[str, Any], tokenizer: Tokenizer) -> str:
    """The first difference of the prompts, "" if there is none."""
    text, ids = result["text"], result["ids"]
    if text is not None and text != case.text:
        place = _first(text, case.text)
        ours, theirs = (repr(one[max(0, place - 20) : place + 20]) for one in (case.text, text))
        return f"the chat template at character {place}: ours {ours}, theirs {theirs}"
    if ids is not None and tuple(ids) != case.ids:
        place = _first(ids, case.ids)
        return f"token {place} of the prompt: ours {_token(case.ids, place, tokenizer)}, theirs {_token(ids, place, tokenizer)}"
    return ""


def _reply(case: Case, result: Mapping[str, Any], tokenizer: Tokenizer, verdict: Verdict) -> tuple[str, str]:
    """The differences of the replies and of the reasons to stop; equal ones and ties are counted."""
    stop = result["stop"]
    if result["reply"] is None:  # a program that tells texts only
        own = tokenizer.decode(case.reply)
        reply = list(case.reply) if result["reply_text"] == own else tokenizer.encode(result["reply_text"])
    else:
        reply = list(result["reply"])
    place = _first(reply, case.reply)
    verdict.all_tokens += len(case.reply)
    verdict.tokens += min(place, len(case.reply))
    if tuple(reply) == case.reply:
        verdict.replies += 1
        verdict.stops += stop == case.finish_reason
        return "", "" if stop == case.finish_reason else f"the reason to stop: ours {case.finish_reason}, theirs {stop}"
    lead = case.lead(place) if place < len(case.reply) else math.inf
    if lead < 2 * verdict.bound:
        verdict.ties += 1
        verdict.stops += 1
        return "", ""
    ours, theirs = _token(case.reply, place, tokenizer), _token(reply, place, tokenizer)
    leads = "" if lead == math.inf else f"; ours leads by {lead:.2g}"
    return f"token {place} of the reply: ours {ours}, theirs {theirs}{leads}", ""


def _logprobs(case: Case, result: Mapping[str, Any], tokenizer: Tokenizer, verdict: Verdict) -> str:
    """The first log-probability beyond the bound. Those that the program does not tell, or that are zero to it and next to zero
    to us, are left out."""
    difference = ""
    for place, (asked, own, theirs) in enumerate(zip(case.asked, case.logprobs, result["logprobs"], strict=True)):
        for token, ours, other in zip(asked, own, theirs, strict=True):
            if other is None or (other == -math.inf and ours < _NOTHING):
                continue
            off = abs(ours - other)
            verdict.compared += 1
            verdict.largest = off if math.isnan(off) else max(verdict.largest, off)
            if not off <= verdict.bound and not difference:  # NaN is beyond every bound
                name = _token([token], 0, tokenizer)
                difference = f"the log-probability of {name} at token {place} of the reply: ours {ours:.5f}, theirs {other:.5f}"
    return difference


def _first(one: Sequence[Any], other: Sequence[Any]) -> int:
    """The first place at which two sequences differ."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def _token(ids: Sequence[int], place: int, tokenizer: Tokenizer) -> str:
    if place >= len(ids):
        return "none"
    return f"{ids[place]} ({tokenizer.decode([ids[place]], skip_special=False)!r})"
