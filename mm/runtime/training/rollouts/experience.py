"""Experience: what an update needs of each sampled token, per completion and per pack.

The names of the attributes are those of the units' fields, which checkpoints hold. Legend: L tokens that the policy drew in a
completion; M those of a pack, N completions of a pack.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import attrs

from mm.runtime.training.rollouts.completions import Sample
from mm.runtime.training.rollouts.sampling import evaluation_mode

if TYPE_CHECKING:
    from torch import Tensor

    from mm.runtime.nn.batch import Packed, Unit
    from mm.runtime.training.context import Context
    from mm.runtime.training.roles import Role

V = TypeVar("V", bound="TokenValues")


@attrs.frozen(kw_only=True, eq=False)
class TokenValues:
    """Values of drawn tokens, (L,) of one completion or (M,) of a pack: advantages, and log-probabilities by the engine, by the
    policy before the first update and by the reference. The last two are None where nothing needs them. An algorithm with further
    values adds them in a subclass."""

    advantages: Tensor
    engine: Tensor
    old: Tensor | None = None
    reference: Tensor | None = None

    def items(self) -> Iterator[tuple[str, Tensor]]:
        """(name, values) of those that there are."""
        held = ((field.name, getattr(self, field.name)) for field in attrs.fields(type(self)))
        return ((name, values) for name, values in held if values is not None)

    @classmethod
    def of_pack(cls: type[V], batch: Packed) -> V:
        """The values of a pack's drawn tokens, (M,). Raises KeyError for one that its units do not have."""
        names = [field.name for field in attrs.fields(cls) if field.default is attrs.NOTHING or field.name in batch.fields]
        if not batch.units:  # a rank without rows of its own goes along with the others
            return cls(**{name: batch.targets.float() for name in names})
        return cls(**{name: batch.fields[name].index_select(0, batch.target_index + 1) for name in names})


@attrs.frozen(kw_only=True, eq=False)
class Experience:
    """A completion with what is learned from it. `advantage` is that of the whole completion, for rollouts.jsonl."""

    sample: Sample
    advantage: float
    tokens: TokenValues

    @classmethod
    def of(cls, sample: Sample, advantage: float, old: Tensor | None, reference: Tensor | None) -> Experience:
        """That of a completion whose tokens all have its advantage."""
        import torch

        advantages_L, engine_L = torch.full((sample.length,), advantage), torch.tensor(sample.drawn_logprobs)
        values = TokenValues(advantages=advantages_L, engine=engine_L, old=old, reference=reference)
        return cls(sample=sample, advantage=advantage, tokens=values)

    def as_unit(self) -> Unit:
        """The unit of an update: the values laid out beside all tokens, 0 where the policy drew nothing."""
        import torch

        learn, fields = torch.tensor(self.sample.learn), dict[str, Any]()
        for name, values in self.tokens.items():
            fields[name] = torch.zeros(len(learn))
            fields[name][learn] = values
        return tokens_of(self.sample, self.sample.unit.row_index, fields)


def tokens_of(sample: Sample, row_index: int, fields: dict[str, Tensor] | None = None) -> Unit:
    """A unit of the sample's tokens, of which those that the policy drew are targets."""
    import torch

    from mm.runtime.nn.batch import Tokens, Unit

    fields = {"learn": torch.tensor(sample.learn), **(fields or {})}
    return Unit((Tokens(torch.tensor(sample.ids), fields, prompt=sample.prompt_length),), row_index=row_index)


def compute_per_token(
    role: Role, samples: Sequence[Sample], context: Context, compute: Callable[[Packed], Tensor]
) -> list[Tensor]:
    """A number for each drawn token of each sample, (L,) on the host, from `compute(pack)`'s (M,) by the role; no gradients."""
    found: list[Any] = [None] * len(samples)
    with evaluation_mode(role):
        for batch in context.packs([tokens_of(sample, index) for index, sample in enumerate(samples)]):
            lengths = [samples[unit.row_index].length for unit in batch.units]
            for unit, values_L in zip(batch.units, compute(batch).float().cpu().split(lengths), strict=True):
                found[unit.row_index] = values_L
    return found


def compute_logprobs(role: Role, samples: Sequence[Sample], context: Context, temperature: float) -> list[Tensor]:
    """The role's log-probabilities of the drawn tokens, at the temperature that they were drawn with."""
    return compute_per_token(role, samples, context, lambda batch: role.logprobs(batch, temperature=temperature))


@attrs.frozen(eq=False)
class DrawnTokens:
    """A pack as a loss sees it: log-probabilities of the drawn tokens now, when they were drawn, by the engine and by the
    reference, their advantages, the completion of each, and how many each completion has. Without old log-probabilities or a
    reference of their own, both are those of now, without gradients."""

    batch: Packed
    logprobs_M: Tensor
    old_M: Tensor
    engine_M: Tensor
    reference_M: Tensor
    advantages_M: Tensor
    document_M: Tensor
    length_N: Tensor

    @classmethod
    def of(cls, batch: Packed, logprobs_M: Tensor, values: TokenValues | None = None) -> DrawnTokens:
        """Those of a pack whose units are experience, with the policy's present log-probabilities."""
        values, now_M = values or TokenValues.of_pack(batch), logprobs_M.detach()
        return cls(
            batch=batch, logprobs_M=logprobs_M, old_M=now_M if values.old is None else values.old, engine_M=values.engine,
            reference_M=now_M if values.reference is None else values.reference, advantages_M=values.advantages,
            document_M=batch.target_document, length_N=batch.targets_per_document(),
        )  # fmt: skip

    @property
    def count(self) -> float:
        """M."""
        return float(len(self.logprobs_M))

    @property
    def ratio_M(self) -> Tensor:
        """The probability now over that when it was drawn."""
        return (self.logprobs_M - self.old_M).exp()
