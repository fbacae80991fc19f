"""GRPO over episodes: draw a turn, run the tools it calls, append what they answer, and go on."""

from __future__ import annotations

from collections.abc import Sequence

from mm.core.episodes import Player
from mm.plugins.algorithms.grpo.algorithm import Grpo
from mm.plugins.rollouts.samples import Sample


class Agent(Grpo):
    """Every drawn token is learned under exactly what stood before it; the tools' answers are read and not learned."""

    def complete(self, samples: Sequence[Sample]) -> None:
        """Turns until an episode stops calling, or may not go on. Its text is the transcript that rewards read."""
        player = Player(
            engine=self.engine, tokenizer=self.tools.tokenizer, tools=self.tools.tools,
            max_turns=self.config.max_turns, max_total_tokens=self.config.max_total_tokens,
        )  # fmt: skip
        policy = self.models["policy"]
        policy.train(False)
        player.play(samples, self.request)
        policy.train(True)
