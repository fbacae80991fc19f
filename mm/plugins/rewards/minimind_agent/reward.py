"""The implementation of the reward `minimind-agent`."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import attrs

from mm.contracts import Reward
from mm.core.errors import UsageError
from mm.plugins.rewards.calls import tools_of
from mm.plugins.rewards.matching import field_of
from mm.plugins.rewards.minimind_agent import AgentRewardConfig
from mm.plugins.rewards.model import ModelConfig
from mm.plugins.rewards.ngrams import WHOLE_WORDS, repetition_penalty
from mm.runtime.text.replies import turns_of
from mm.runtime.text.tool_schema import functions_of

_BOUND = 3.0
_GT_WEIGHT = 2.5
_CALL = re.compile(r"<tool_call>(.*?)</tool_call>", re.DOTALL)
_NUMBER = r"[-+]?\d+(?:\.\d+)?"
_NUMBERS = re.compile(rf"(?<![\w.]){_NUMBER}(?![\w.])")
_SAME = 1e-6  # numbers that are nearer to each other than this are equal
_COUNTED = ("number", "integer", "float", "boolean")  # types whose zero is an argument like any other


class AgentReward(Reward):
    """The reward of `train_agent.py` in MiniMind 3 (`calculate_rewards`), to the figure; `gt` and calls as there.

    Every unbalanced call tag costs 0.5. Then, thoughts apart:

    - An episode without a call that is JSON is judged by its form, as by the reward `length` from 5 to 800 characters, and, if
      there is a reward model, by its score of the answer.
    - Any other gets 0.5 for as many valid calls as `gt` has values and no other, else -0.5 for each that differs; 2.5 times the
      share of the `gt` values in the answer; and -0.5 if it ends with a call, when it has no answer.

    Last comes the penalty on repetition, and the sum is clipped to -3 to 3. A call is valid if the row offers its tool and it has
    the required arguments. None for a row without `gt`.
    """

    def __init__(self, config: AgentRewardConfig) -> None:
        super().__init__(config)
        self._model = _reward_model(config)

    def __call__(self, rows: Sequence[Any], completions: Sequence[str]) -> list[float | None]:
        """See the class."""
        episodes = [_Episode.of(row, text) for row, text in zip(rows, completions, strict=True)]
        judged = [index for index, one in enumerate(episodes) if one is not None and not one.calls]
        scores = dict.fromkeys(judged, 0.0)
        if self._model is not None and judged:
            found = self._model([rows[index] for index in judged], [completions[index] for index in judged])
            scores = {index: score or 0.0 for index, score in zip(judged, found, strict=True)}
        return [None if one is None else one.score(scores.get(index, 0.0)) for index, one in enumerate(episodes)]


@attrs.frozen(kw_only=True)
class _Episode:
    """An episode as the reward reads it: its last turn, each turn without thoughts, the calls in these, and the row's tools and
    `gt`."""

    last: str
    turns: list[str]
    calls: list[Any]
    functions: Mapping[str, Mapping[str, Any]]
    gt: Sequence[Any]

    @classmethod
    def of(cls, row: Any, text: str) -> _Episode | None:
        gt = field_of(row, "gt")
        if not isinstance(gt, list):
            return None
        said = turns_of(text)
        turns = [turn.split("</think>", 1)[-1].strip() for turn in said]
        calls = [call for turn in turns for call in _calls_of(turn)]
        return cls(last=said[-1], turns=turns, calls=calls, functions=functions_of(tools_of(row)), gt=gt)

    def score(self, model_score: float) -> float:
        tags = sum(abs(turn.count("<tool_call>") - turn.count("</tool_call>")) for turn in self.turns)
        total = -0.5 * tags + (self._of_calls() if self.calls else self._of_form() + model_score)
        answer = (self.answer if self.calls else "") or self.turns[-1]
        repeated = repetition_penalty(WHOLE_WORDS.findall(answer.lower()), 3, 0.5)
        return max(-_BOUND, min(_BOUND, total - repeated))

    @property
    def answer(self) -> str:
        """The text after the calls of the last turn; empty if the episode ends with a call, since it was broken off there."""
        return "" if _calls_of(self.turns[-1]) else self.turns[-1].split("</tool_call>")[-1]

    def _of_calls(self) -> float:
        valid = sum(_is_valid(call, self.functions) for call in self.calls)
        gap = abs(valid - len(self.gt)) + len(self.calls) - valid
        found = {
            value if isinstance(value, str | int | float) else repr(value)
            for value in self.gt
            if _contains(self.answer, str(value).strip())
        }
        share = _GT_WEIGHT * len(found) / len(self.gt) if self.gt else 0.0
        return (0.5 if gap == 0 else -0.5 * gap) + share - (0.5 if _calls_of(self.turns[-1]) else 0.0)

    def _of_form(self) -> float:
        total = 0.5 if 5 <= len(self.last.strip()) <= 800 else -0.5
        thoughts, closed, _ = self.last.partition("</think>")
        if closed:
            total += 1.0 if 20 <= len(thoughts.strip()) <= 300 else -0.5
            total += 0.25 if self.last.count("</think>") == 1 else -0.25
        return total


def _calls_of(turn: str) -> list[Any]:
    """The calls of a turn that are JSON, of whatever form."""
    calls = []
    for body in _CALL.findall(turn):
        try:
            calls.append(json.loads(body.strip()))
        except (ValueError, RecursionError):
            continue
    return calls


def _is_valid(call: Any, functions: Mapping[str, Mapping[str, Any]]) -> bool:
    """True if the row offers the tool and the call has its required arguments: none of them is null, and only a number or a
    truth value may be zero. Types and further arguments do not matter."""
    name = call.get("name", "") if isinstance(call, dict) else None
    if not isinstance(name, str) or name not in functions:
        return False
    given = call.get("arguments", {})
    if isinstance(given, str):
        try:
            given = json.loads(given)
        except (ValueError, RecursionError):
            given = {}
    schema = functions[name].get("parameters")
    if not isinstance(given, dict) or not isinstance(schema, Mapping):
        return isinstance(given, dict)
    kinds: Any = schema.get("properties") or {}
    return all(_is_given(given.get(key), kinds.get(key)) for key in schema.get("required") or ())


def _is_given(value: Any, kind: Any) -> bool:
    counted = isinstance(kind, Mapping) and kind.get("type") in _COUNTED
    return value is not None if counted else bool(value)


def _contains(text: str, value: str) -> bool:
    """True if the text contains the value, whatever stands around it, or a number equal to it."""
    if value and value.lower() in text.lower():
        return True
    number = value.replace(",", "")
    if not re.fullmatch(_NUMBER, number):
        return False
    return any(abs(float(number) - float(other)) < _SAME for other in _NUMBERS.findall(text.replace(",", "")))


def _reward_model(config: AgentRewardConfig) -> Reward | None:
    """The reward model, which reads answers as MiniMind 3's does. Raises UsageError for settings of a model that is not named."""
    if config.path is None:
        if idle := [name for name, value in attrs.asdict(config).items() if value != getattr(AgentRewardConfig(), name)]:
            flag = f"--minimind-agent-{idle[0].replace('_', '-')}"
            raise UsageError(f"{flag} is for a reward model, and none is named: pass --minimind-agent-path FOLDER.")
        return None
    from mm.plugins.rewards.model.reward import ModelReward

    class Judge(ModelReward):
        name = "minimind-agent"

    return Judge(ModelConfig(answer_only=True, flat_history=True, **attrs.asdict(config)))
