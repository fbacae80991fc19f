"""GRPO over episodes: draw a turn, run the tools it calls, append what they answer, and go on."""

from __future__ import annotations

from collections.abc import Sequence

import attrs

from mm.core.contracts import Request
from mm.core.data.messages import Message
from mm.core.data.replies import read_calls, transcript
from mm.core.tool_use import call
from mm.plugins.algorithms.grpo.algorithm import Grpo
from mm.plugins.rollouts.samples import Sample


class Agent(Grpo):
    """An episode's tokens only ever grow at their end, so each turn continues what the engine's cache holds and every
    drawn token is learned under exactly what stood before it; the tools' answers are read and not learned."""

    def complete(self, samples: Sequence[Sample]) -> None:
        """Turns until an episode stops calling, or may not go on. Its text is the transcript that rewards read."""
        policy = self.models["policy"]
        policy.train(False)
        turns: dict[int, list[str]] = {id(sample): [] for sample in samples}
        results: dict[int, list[list[str]]] = {id(sample): [] for sample in samples}
        active = list(samples)
        for turn in range(self.config.max_turns):
            for sample, completion in zip(
                active, self.engine.generate([self.request(s, turn) for s in active]), strict=True
            ):
                sample.extend(completion)
                turns[id(sample)].append(self.tools.tokenizer.decode(completion.ids))
            last = turn == self.config.max_turns - 1
            active = [s for s in active if self._goes_on(s, turns[id(s)][-1], results[id(s)], last)]
            if not active:
                break
        policy.train(True)
        for sample in samples:
            sample.text = transcript(turns[id(sample)], results[id(sample)])

    def request(self, sample: Sample, turn: int = 0) -> Request:
        """A turn, as long as the episode's bound leaves room for."""
        asked = super().request(sample, turn)
        room = max(0, self.config.max_total_tokens - len(sample.ids))
        return attrs.evolve(asked, max_new_tokens=min(asked.max_new_tokens, room))

    def _goes_on(self, sample: Sample, said: str, results: list[list[str]], last: bool) -> bool:
        """Run what a turn calls; whether the model is to read the answers and go on."""
        calls = read_calls(said)
        if sample.finish_reason != "stop" or not calls:
            return False
        if last:
            sample.finish_reason = "turns"
            return False
        answers = [call(self.tools.tools, asked) for asked in calls]
        observed = self.tools.tokenizer.encode_reply([Message("tool", answer) for answer in answers])
        if len(sample.ids) + len(observed) >= self.config.max_total_tokens:
            sample.finish_reason = "length"
            return False
        results.append(answers)
        sample.observe(observed)
        return True
