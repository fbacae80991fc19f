"""The implementation of the reward `format`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from mm.contracts import Reward
from mm.plugins.rewards.format import FormatConfig
from mm.plugins.rewards.matching import final_turn

_LINES = re.compile(r"<think>\n.*?\n</think>\n\n?<answer>\n.*?\n</answer>$", re.DOTALL)


class Format(Reward):
    """0.5, as in MiniMind, if the completion has the required blocks, each once and not empty, and nothing else; else 0.

    With `lines` the rule is that of MiniMind's second generation, which asks for line breaks around the tags, allows any text
    between them, even further tags, and does not strip the completion.
    """

    def __init__(self, config: FormatConfig) -> None:
        super().__init__(config)
        tag = "</?(?:think|answer)>" if config.answer else "</?think>"
        filled = rf"\s*(?!{tag})\S(?:(?!{tag}).)*"  # text without tags that is not only white space
        begin = "" if config.opened else "<think>"
        end = f"<answer>{filled}</answer>" if config.answer else filled
        self._pattern = re.compile(rf"{begin}{filled}</think>\s*{end}", re.DOTALL)

    def __call__(self, rows: Sequence[Any], completions: Sequence[str]) -> list[float | None]:
        """See the class."""
        if self.config.lines:
            return [0.5 if _LINES.match(final_turn(text)) else 0.0 for text in completions]
        return [0.5 if self._pattern.fullmatch(final_turn(text).strip()) else 0.0 for text in completions]
