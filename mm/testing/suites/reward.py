"""The checks that every reward must pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from mm.core.errors import MMError, UsageError
from mm.core.records import RewardSpec
from mm.runtime.generation.engine import Reward
from mm.runtime.generation.scoring import score
from mm.runtime.text.rows import Row
from mm.testing.suites.check import Skip
from mm.testing.suites.running import about
from mm.testing.suites.suite import Suite

# right answers, empty ones, misplaced and unclosed tags, other languages, a long text
_COMPLETIONS = (
    "The answer is 12.", "", " \n", "<think>\na\n</think>\n<answer>\n12\n</answer>", "</answer><answer></think><think>",
    "答案是12。", "<tool_call>", '<tool_call>{"name": "x", "arguments": {}}</tool_call>', "\ufffd\u200b🙂", "\\boxed{\\frac{1}",
    "a" * 2000, "<tool_call>[1]</tool_call><tool_response>1</tool_response>",
)  # fmt: skip


class RewardSuite(Suite):
    """The checks of a reward, on typed rows. `config` replaces the default settings."""

    contract: ClassVar[type | None] = Reward

    def __init__(self, spec: RewardSpec, rows: Sequence[Row], config: Any = None, module: str | None = None) -> None:
        super().__init__(spec, module)
        self.rows, self.config = rows, config

    @about("__call__")
    def check_scores(self) -> str:
        """The reward returns one finite number or None per completion, whatever its text, and nothing for an empty batch."""
        reward = self._reward()
        for row in self.rows:
            try:
                score({self.spec.name: (reward, 1.0)}, [row] * len(_COMPLETIONS), _COMPLETIONS)
            except UsageError as error:
                if error.__cause__:  # the reward has raised it
                    raise AssertionError(str(error)) from error
                continue  # the reward applies to no completion of this row, which is allowed
            except MMError as error:
                raise AssertionError(str(error)) from error
        assert list(reward([], [])) == [], "an empty batch has scores"
        return f"{len(self.rows)} rows, {len(_COMPLETIONS)} completions each"

    @about("__call__")
    def check_repeats(self) -> None:
        """The same completions get the same scores again: otherwise a run could not be resumed exactly."""
        reward = self._reward()
        for row in self.rows:
            rows = [row] * len(_COMPLETIONS)
            first, second = list(reward(rows, _COMPLETIONS)), list(reward(rows, _COMPLETIONS))
            assert first == second, f"first {first}, then {second}"

    def _reward(self) -> Reward:
        config = self.config or (self.spec.config() if self.spec.config else None)
        try:
            reward: Reward = self.spec.load()(config)
        except UsageError as error:
            raise Skip(str(error)) from None
        return reward
