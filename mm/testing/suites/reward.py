"""What a reward must hold to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from mm.core.errors import MMError, UsageError
from mm.core.records import RewardSpec
from mm.runtime.generation.engine import Reward
from mm.runtime.generation.scoring import score
from mm.runtime.text.rows import Row
from mm.testing.suites.suite import Skip, Suite

# right ones, empty ones, tags in every disorder, other languages, something long
_COMPLETIONS = (
    "The answer is 12.", "", " \n", "<think>\na\n</think>\n<answer>\n12\n</answer>", "</answer><answer></think><think>",
    "答案是12。", "<tool_call>", '<tool_call>{"name": "x", "arguments": {}}</tool_call>', "\ufffd\u200b🙂", "\\boxed{\\frac{1}",
    "a" * 2000, "<tool_call>[1]</tool_call><tool_response>1</tool_response>",
)  # fmt: skip


class RewardSuite(Suite):
    """Checks on rows; a reward whose defaults do not suffice is checked with the `config` given."""

    contract: ClassVar[type | None] = Reward

    def __init__(self, spec: RewardSpec, rows: Sequence[Row], config: Any = None, module: str | None = None) -> None:
        super().__init__(spec, module)
        self.rows, self.config = rows, config

    def check_scores(self) -> str:
        """One finite number or None for each completion, whatever it holds; a batch of none gives none."""
        reward = self._reward()
        for row in self.rows:
            try:
                score({self.spec.name: (reward, 1.0)}, [row] * len(_COMPLETIONS), _COMPLETIONS)
            except UsageError:  # it does not apply to this row, which may be
                continue
            except MMError as error:
                raise AssertionError(str(error)) from error
        assert list(reward([], [])) == [], "no completions give scores"
        return f"{len(self.rows)} rows, {len(_COMPLETIONS)} completions each"

    def check_repeats(self) -> None:
        """Asked again it says the same: a run could not be resumed exactly otherwise."""
        reward = self._reward()
        for row in self.rows:
            rows = [row] * len(_COMPLETIONS)
            first, second = list(reward(rows, _COMPLETIONS)), list(reward(rows, _COMPLETIONS))
            assert first == second, f"{first} at first, then {second}"

    def _reward(self) -> Reward:
        config = self.config or (self.spec.config() if self.spec.config else None)
        try:
            reward: Reward = self.spec.load()(config)
        except UsageError as error:
            raise Skip(str(error)) from None
        return reward
