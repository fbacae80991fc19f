"""Completions on their way from the engine to the update. They keep the engine's token ids: text is never tokenized again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import attrs

from mm.runtime.generation.engine import Completion
from mm.runtime.generation.episodes import Episode
from mm.runtime.generation.scoring import CompletionScore

if TYPE_CHECKING:
    from mm.runtime.nn.batch import Unit
    from mm.runtime.text.messages import Message
    from mm.runtime.text.rows import Row

OVERLONG = "overlong"  # the name under which the penalty on length is reported among the rewards


@attrs.define(eq=False, kw_only=True)
class Sample(Episode):
    """One completion of a prompt, of one turn or several. `learn` marks the ids that the policy drew; `logprobs` are the engine's
    log-probabilities of these (0 elsewhere); `key` identifies the completion among all of the run."""

    unit: Unit
    row: Row
    key: tuple[int, ...]
    learn: list[bool]
    logprobs: list[float]
    score: CompletionScore = attrs.field(factory=CompletionScore)

    @classmethod
    def of(cls, unit: Unit, row: Row, key: tuple[int, ...]) -> Sample:
        """A prompt without a completion yet."""
        ids = unit.sequences[0].ids.tolist()
        return cls(unit=unit, row=row, key=key, ids=ids, learn=[False] * len(ids), logprobs=[0.0] * len(ids))

    @property
    def reward(self) -> float:
        """The weighted sum of its rewards."""
        return self.score.total

    @property
    def prompt_length(self) -> int:
        """The number of the prompt's tokens."""
        return len(self.unit.sequences[0])

    @property
    def length(self) -> int:
        """The number of tokens that the policy drew."""
        return sum(self.learn)

    @property
    def drawn_logprobs(self) -> list[float]:
        """The engine's log-probabilities of the tokens that the policy drew."""
        return [value for value, drawn in zip(self.logprobs, self.learn, strict=True) if drawn]

    def extend(self, completion: Completion, text: str) -> None:
        """Append tokens that the policy drew, and their text."""
        super().extend(completion, text)
        self.learn += [True] * len(completion.ids)
        self.logprobs += completion.logprobs

    def observe(self, ids: Iterable[int]) -> None:
        """Append tokens that the policy did not draw, such as a tool's result: context and no targets."""
        read = list(ids)
        super().observe(read)
        self.learn += [False] * len(read)
        self.logprobs += [0.0] * len(read)

    def log_line(self, step: int, place: str, prompt: str, advantage: float) -> Mapping[str, Any]:
        """The completion's line in rollouts.jsonl. `step` is the first one that learns from it, `place` the file and line of its
        prompt."""
        return {
            "step": step, "row": self.unit.row_index, "place": place, "prompt": prompt, "completion": self.text,
            "rewards": self.score.by_name, "failed": self.score.failed, "reward": self.reward, "advantage": advantage,
            "tokens": self.length, "finish_reason": self.finish_reason,
        }  # fmt: skip


Group = Sequence[Sample]
Groups = Sequence[Group]


@runtime_checkable
class HasMessages(Protocol):
    """A row that is a conversation."""

    @property
    def messages(self) -> tuple[Message, ...]:
        """Its turns."""


def prompt_text(row: Row) -> str | None:
    """The prompt as a reader wants it: the user's text or, of several turns, each with its role; None if the row is no
    conversation."""
    if not isinstance(row, HasMessages):
        return None
    if len(row.messages) == 1:
        return row.messages[0].content
    return "\n".join(f"{message.role}: {message.content}" for message in row.messages)


def samples_to_read(groups: Groups, count: int) -> list[Sample]:
    """At most `count` completions of as many prompts as that allows: of each prompt the best and the worst by reward; if there
    is room, more of them."""
    ranked = [sorted(group, key=lambda sample: -sample.reward) for group in groups]
    pairs = [sample for group in ranked for sample in (group[:1] + group[1:][-1:])]
    others = [sample for group in ranked for sample in group[1:-1]]
    chosen = {id(sample) for sample in [*pairs, *others][:count]}
    return [sample for group in ranked for sample in group if id(sample) in chosen]


def rewards_of(groups: Groups) -> list[list[float]]:
    """The reward of each completion, group by group."""
    return [[sample.reward for sample in group] for group in groups]


def flatten(groups: Groups) -> list[Sample]:
    """The completions of all groups."""
    return [sample for group in groups for sample in group]


def without_failures(group: Group) -> list[Sample]:
    """The completions for which no reward failed."""
    return [sample for sample in group if not sample.score.failed]


def has_spread(group: Group) -> bool:
    """True if the completions for which no reward failed have different rewards."""
    return len({sample.reward for sample in without_failures(group)}) > 1


def penalise_length(score: CompletionScore, room: float) -> CompletionScore:
    """DAPO's soft penalty on length (arXiv:2503.14476, eq. 13). `room` is the number of remaining tokens divided by
    `overlong_buffer`. The penalty counts in training, but not in the rewards of held-out rows."""
    cost = max(0.0, 1 - room)
    return attrs.evolve(score, total=score.total - cost, by_name={**score.by_name, OVERLONG: -cost})
