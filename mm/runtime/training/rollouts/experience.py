"""Experience: the values that an update needs for each drawn token, per completion and per pack.

The attributes have the names of the units' fields, which are saved in checkpoints. Legend: L drawn tokens of a completion,
M drawn tokens of a pack, N completions of a pack.
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
    """Values of drawn tokens, (L,) for one completion or (M,) for a pack: advantages, and log-probabilities by the `engine`, by
    the policy before the first update (`old`) and by the `reference`. The last two are None if not needed. An algorithm with
    further values adds them in a subclass."""

    advantages: Tensor
    engine: Tensor
    old: Tensor | None = None
    reference: Tensor | None = None

    def items(self) -> Iterator[tuple[str, Tensor]]:
        """(name, values) of those that are not None."""
        held = ((field.name, getattr(self, field.name)) for field in attrs.fields(type(self)))
        return ((name, values) for name, values in held if values is not None)

    @classmethod
    def of_pack(cls: type[V], batch: Packed) -> V:
        """The values of a pack's drawn tokens, (M,). Raises KeyError if its units do not have a required field."""
        names = [field.name for field in attrs.fields(cls) if field.default is attrs.NOTHING or field.name in batch.fields]
        if not batch.units:  # a rank without units runs an empty pack
            return cls(**{name: batch.targets.float() for name in names})
        return cls(**{name: batch.fields[name].index_select(0, batch.target_index + 1) for name in names})


@attrs.frozen(kw_only=True, eq=False)
class Experience:
    """A completion with the values of its drawn tokens. `advantage` is that of the whole completion, for rollouts.jsonl."""

    sample: Sample
    advantage: float
    tokens: TokenValues

    @classmethod
    def of(cls, sample: Sample, advantage: float, old: Tensor | None, reference: Tensor | None) -> Experience:
        """The experience of a completion; each token gets the completion's advantage."""
        import torch

        advantages_L, engine_L = torch.full((sample.length,), advantage), torch.tensor(sample.drawn_logprobs)
        values = TokenValues(advantages=advantages_L, engine=engine_L, old=old, reference=reference)
        return cls(sample=sample, advantage=advantage, tokens=values)

    def as_unit(self) -> Unit:
        """The unit for an update: the values are fields over all tokens, 0 for those that the policy did not draw."""
        import torch

        learn, fields = torch.tensor(self.sample.learn), dict[str, Any]()
        for name, values in self.tokens.items():
            fields[name] = torch.zeros(len(learn), dtype=values.dtype)
            fields[name][learn] = values
        return tokens_of(self.sample, self.sample.unit.row_index, fields)


def tokens_of(sample: Sample, row_index: int, fields: dict[str, Tensor] | None = None) -> Unit:
    """A unit of the sample's tokens. Those that the policy drew are its targets; `fields` are further values per token."""
    import torch

    from mm.runtime.nn.batch import Tokens, Unit

    fields = {"learn": torch.tensor(sample.learn), **(fields or {})}
    return Unit((Tokens(torch.tensor(sample.ids), fields, prompt=sample.prompt_length),), row_index=row_index)


def compute_per_token(
    role: Role, samples: Sequence[Sample], context: Context, compute: Callable[[Packed], Tensor]
) -> list[Tensor]:
    """A value for each drawn token of each sample, (L,) on the host. `compute(pack)` returns those of a pack, (M,), with the role
    in `eval()`. To be called without gradients."""
    found: list[Any] = [None] * len(samples)
    with evaluation_mode(role):
        for batch in context.packs([tokens_of(sample, index) for index, sample in enumerate(samples)]):
            lengths = [samples[unit.row_index].length for unit in batch.units]
            for unit, values_L in zip(batch.units, compute(batch).cpu().split(lengths), strict=True):
                found[unit.row_index] = values_L
    return found


def compute_logprobs(role: Role, samples: Sequence[Sample], context: Context, temperature: float) -> list[Tensor]:
    """The role's log-probabilities of each sample's drawn tokens, (L,) on the host, at the temperature of sampling."""
    return compute_per_token(role, samples, context, lambda batch: role.logprobs(batch, temperature=temperature))


@attrs.frozen(eq=False)
class DrawnTokens:
    """The drawn tokens of a pack, for a loss.

    - `logprobs_M`: the policy's present log-probabilities, with gradients;
    - `old_M`, `engine_M`, `reference_M`: those by the policy before the first update, by the engine and by the reference. If the
      units do not have the first or the last, they are the present ones without gradients;
    - `advantages_M`; `document_M`, the index of each token's completion; `length_N`, the number of each completion's tokens.
    """

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
        """The drawn tokens of a pack whose units `Experience.as_unit` made. `values` are by default read from the pack."""
        values, now_M = values or TokenValues.of_pack(batch), logprobs_M.detach()
        return cls(
            batch=batch, logprobs_M=logprobs_M, old_M=now_M if values.old is None else values.old, engine_M=values.engine,
            reference_M=now_M if values.reference is None else values.reference, advantages_M=values.advantages,
            document_M=batch.target_document, length_N=batch.targets_per_document(),
        )  # fmt: skip

    @property
    def count(self) -> float:
        """M, the number of drawn tokens."""
        return float(len(self.logprobs_M))

    @property
    def ratio_M(self) -> Tensor:
        """The present probability of each token divided by the old one."""
        return (self.logprobs_M - self.old_M).exp()
