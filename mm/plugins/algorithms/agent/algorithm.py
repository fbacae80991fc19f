"""GRPO over episodes: draw a turn, run the tools it calls, append what they answer, and go on."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from mm.plugins.algorithms.grpo.algorithm import Grpo
from mm.plugins.rollouts.samples import Sample
from mm.runtime.generation.episodes import EpisodeRunner
from mm.runtime.text.tool_schema import functions_of


class Agent(Grpo):
    """Every drawn token is learned under exactly what stood before it; the tools' answers are read and not learned."""

    def complete(self, samples: Sequence[Sample]) -> None:
        """Turns until an episode stops calling, or may not go on. Its text is the transcript that rewards read."""
        self._tell_missing(samples)
        runner = EpisodeRunner(
            engine=self.engine, tokenizer=self.context.tokenizer, tools=self.context.tools,
            max_turns=self.config.max_turns, max_total_tokens=self.config.max_total_tokens,
        )  # fmt: skip
        policy = self.models["policy"]
        policy.train(False)
        runner.run(samples, self.request)
        policy.train(True)

    def room(self, sample: Sample) -> int:
        """How many more tokens the longest turn, or the whole episode, could have had."""
        turns = [len(list(run)) for drawn, run in groupby(sample.learn) if drawn]
        return int(min(self.config.max_new_tokens - max(turns, default=0), self.config.max_total_tokens - len(sample.ids)))

    def longest(self) -> tuple[int, str]:
        """The bound of an episode."""
        return self.config.max_total_tokens, f"--max-total-tokens {self.config.max_total_tokens} is"

    def _tell_missing(self, samples: Sequence[Sample]) -> None:
        """Say which tools a prompt offers that no --tool runs, once for each."""
        offered = {name for sample in samples for name in functions_of(getattr(sample.row, "tools", ()))}
        for name in sorted(offered - self.context.tools.keys()):
            self.context.warn(f"rows offer the tool {name}, which no --tool runs: calls of it are answered with an error")
