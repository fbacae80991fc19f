"""Completions on their way from the engine to the update. Token ids are never made from text again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import attrs
import torch
from torch import Tensor

from mm.contracts import Completion
from mm.runtime.generation.episodes import Episode
from mm.runtime.nn.batch import Tokens, Unit
from mm.runtime.text.rows import Row
from mm.runtime.training.context import stable_seed


@attrs.define(eq=False, kw_only=True)
class Sample(Episode):
    """One completion of a prompt, of one turn or of several. `learn` marks the ids that the policy drew and `logprobs`
    are the engine's for them (0 elsewhere). `fields` are further tensors of that length. `failed` are the rewards that
    failed at it, by name with the reason: nothing is then learned from it."""

    unit: Unit
    row: Row
    key: tuple[int, ...]
    learn: list[bool]
    logprobs: list[float]
    rewards: dict[str, float | None] = attrs.field(factory=dict)
    failed: Mapping[str, str] = attrs.field(factory=dict)
    reward: float = 0.0
    advantage: float = 0.0
    fields: dict[str, Tensor] = attrs.field(factory=dict)

    @classmethod
    def of(cls, unit: Unit, row: Row, key: tuple[int, ...]) -> Sample:
        """A prompt without a completion yet."""
        ids = unit.sequences[0].ids.tolist()
        return cls(unit=unit, row=row, key=key, ids=ids, learn=[False] * len(ids), logprobs=[0.0] * len(ids))

    @property
    def prompt_length(self) -> int:
        """Tokens of the prompt."""
        return len(self.unit.sequences[0])

    @property
    def length(self) -> int:
        """Tokens that the policy drew."""
        return sum(self.learn)

    def extend(self, completion: Completion, text: str) -> None:
        """Append what the policy drew."""
        super().extend(completion, text)
        self.learn += [True] * len(completion.ids)
        self.logprobs += completion.logprobs

    def observe(self, ids: Iterable[int]) -> None:
        """Append tokens that came from elsewhere: they are read and not learned."""
        found = list(ids)
        super().observe(found)
        self.learn += [False] * len(found)
        self.logprobs += [0.0] * len(found)

    def punish(self, room: float) -> None:
        """DAPO's soft punishment (arXiv:2503.14476, eq. 13) of one that had room for this share of the buffer's tokens: it is
        learned from and no part of held-out rewards."""
        cost = max(0.0, 1 - room)
        self.rewards["overlong"] = -cost
        self.reward -= cost

    def as_unit(self) -> Unit:
        """The unit of an update."""
        fields = {
            "learn": torch.tensor(self.learn), "engine": torch.tensor(self.logprobs), "advantages": self._advantages(),
            **self.fields,
        }  # fmt: skip
        return Unit((Tokens(torch.tensor(self.ids), fields, prompt=self.prompt_length),), row_index=self.unit.row_index)

    def log(self, step: int, prompt: str) -> Mapping[str, Any]:
        """The line of rollouts.jsonl."""
        return {
            "step": step, "row": self.unit.row_index, "prompt": prompt, "completion": self.text, "rewards": self.rewards,
            "failed": self.failed, "reward": self.reward, "advantage": self.advantage, "tokens": self.length,
            "finish_reason": self.finish_reason,
        }  # fmt: skip

    def _advantages(self) -> Tensor:
        """The same for every token, unless `fields` has them one by one."""
        return torch.full((len(self.ids),), self.advantage)


def judged(group: Sequence[Sample]) -> list[Sample]:
    """Those at which no reward failed."""
    return [sample for sample in group if not sample.failed]


def have_spread(group: Sequence[Sample]) -> bool:
    """Whether there are different rewards among them."""
    return len({sample.reward for sample in judged(group)}) > 1


def deal(keys: Sequence[tuple[int, ...]], passes: int, parts: int) -> list[set[tuple[int, ...]]]:
    """The keys of every mini-batch: those of each pass in an order of its own, dealt out in turn."""
    orders = [sorted(keys, key=lambda key: (stable_seed(number, *key), key)) for number in range(passes)]
    return [set(order[part::parts]) for order in orders for part in range(parts)]
