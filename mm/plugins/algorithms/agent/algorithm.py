"""GRPO over episodes: sample a turn, run the tools that it calls, append their results, and continue."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import ClassVar

import attrs

from mm.contracts import Sample, Watch
from mm.plugins.algorithms.agent import AgentConfig
from mm.plugins.algorithms.grpo.algorithm import Grpo
from mm.runtime.generation.episodes import EpisodeRunner
from mm.runtime.text.tool_schema import functions_of
from mm.runtime.training.rollouts.completion_metrics import RANGES
from mm.runtime.training.rollouts.sampling import request_turn


class Agent(Grpo):
    """GRPO over episodes of several turns. Every sampled token is trained in the exact context in which it was sampled; the
    tools' results are context and no targets."""

    config: AgentConfig
    # most tokens of an episode are the syntax of calls, of which a policy is sure: the entropy per token is low from the start
    watch: ClassVar[Mapping[str, Watch]] = {**RANGES, "entropy": attrs.evolve(RANGES["entropy"], low=0.002)}

    def complete(self, samples: Sequence[Sample]) -> None:
        """Run each episode until the model calls no tool, or a limit is reached. Rewards read the whole transcript."""
        self._warn_of_missing_tools(samples)
        runner = EpisodeRunner(
            engine=self.engine, tokenizer=self.context.tokenizer, tools=self.context.tools,
            max_turns=self.config.max_turns, max_total_tokens=self.config.max_total_tokens,
        )  # fmt: skip
        runner.run(samples, lambda sample, turn: request_turn(sample, turn, self.config, self.context))

    def remaining_tokens(self, sample: Sample) -> int:
        """The tokens left before the nearer bound: that of the longest turn, or that of the episode."""
        turns = [len(list(run)) for drawn, run in groupby(sample.learn) if drawn]
        return min(self.config.max_new_tokens - max(turns, default=0), self.config.max_total_tokens - len(sample.ids))

    def longest_sequence(self) -> Mapping[str, int]:
        """The bound of an episode, in tokens."""
        return {f"--max-total-tokens {self.config.max_total_tokens}": self.config.max_total_tokens}

    def _warn_of_missing_tools(self, samples: Sequence[Sample]) -> None:
        offered = {name for sample in samples for name in functions_of(getattr(sample.row, "tools", ()))}
        for name in sorted(offered - self.context.tools.keys()):
            self.context.warn(f"rows offer the tool {name}, which no --tool runs: calls of it are answered with an error")
