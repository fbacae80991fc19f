"""Units and packed batches. Batches are always packed: documents lie end to end, and nothing is padded.

Shape suffixes used in the project: T tokens of a pack, N documents of a pack, M learned positions, H heads, K key/value
heads, D head size, E hidden size, V vocabulary, S cache slots, C cache capacity.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import attrs
import torch
from torch import Tensor

from mm.runtime.nn.dropout import Dropout, TokenDropout
from mm.runtime.nn.shared import SharedPrompts, find_shared_prompts


@attrs.frozen(eq=False)
class Tokens:
    """One token sequence: `ids` (length,) int64.

    `fields` are tensors of the same length: `learn` (bool, True for targets), and what an algorithm adds in `prepare`,
    such as advantages or reference log-probabilities. `prompt` is the number of first tokens that other sequences of the
    pack probably start with too; equal prompts of a pack are computed once.
    """

    ids: Tensor
    fields: Mapping[str, Tensor] = attrs.field(factory=dict)
    prompt: int = 0

    def __len__(self) -> int:
        return int(self.ids.shape[0])

    @property
    def learn(self) -> Tensor:
        """True for each token that is a target (bool, of the sequence's length); without such a field all are."""
        found = self.fields.get("learn")
        return torch.ones(len(self), dtype=torch.bool) if found is None else found


@attrs.frozen(eq=False)
class Unit:
    """Sequences that always stay in one micro-batch: a document (one sequence), a pair of answers (two), an episode.

    `row_index` is its index in the data, and `values` are numbers that belong to the whole unit. `repeat` counts the
    earlier units of the same row in the same global batch.
    """

    sequences: tuple[Tokens, ...]
    row_index: int = -1
    values: Mapping[str, float] = attrs.field(factory=dict)
    repeat: int = 0

    @property
    def num_tokens(self) -> int:
        """The number of tokens of all sequences."""
        return sum(len(s) for s in self.sequences)


@attrs.define(eq=False)
class Packed:
    """A micro-batch of N documents laid end to end.

    - `input_ids` (T,) and `position_ids` (T,), which start at 0 in each document.
    - `cu_seqlens` (N + 1,) int32: the offsets of the documents. `lengths`: their lengths, on the host.
    - `targets` (M,): the learned ids. `target_index` (M,): the position whose hidden state predicts each of them. Both
      are computed on the host, so that selecting positions never synchronises the device.
    - `fields`: further tensors, one element per token.
    - `units`: the units in the pack. `documents`: for each document the index of its unit and its index in that unit.
    - `shared`: the tokens that are computed once because prompts are equal; None if too few are.
    - `dropout`: what a model in training drops, if it `applies_dropout`; None: nothing. With it prompts are not shared.
    """

    input_ids: Tensor
    position_ids: Tensor
    cu_seqlens: Tensor
    lengths: tuple[int, ...]
    target_index: Tensor
    targets: Tensor
    fields: dict[str, Tensor] = attrs.field(factory=dict)
    documents: tuple[tuple[int, int], ...] = ()
    units: tuple[Unit, ...] = ()
    shared: SharedPrompts | None = None
    dropout: Dropout | None = None

    @property
    def num_tokens(self) -> int:
        """T, the number of tokens."""
        return int(self.input_ids.shape[0])

    @property
    def num_targets(self) -> int:
        """M, the number of targets."""
        return int(self.targets.shape[0])

    @property
    def target_document(self) -> Tensor:
        """The document of each learned position, M; computed on the device, without a synchronisation."""
        return torch.searchsorted(self.cu_seqlens[1:].long(), self.target_index, right=True)

    def token_dropout(self) -> TokenDropout | None:
        """The dropout of each token, which a model applies in training; None if there is none."""
        if self.dropout is None:
            return None
        return self.dropout.of_tokens(self.input_ids, self.position_ids, self.cu_seqlens)

    def targets_per_document(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """How many learned positions each document has, N."""
        return self.sum_by_document(torch.ones_like(self.targets, dtype=dtype))

    def sum_by_document(self, values_M: Tensor) -> Tensor:
        """The sums over each document's learned positions, N.

        Through a table with a row for each document: adding by index comes in another order each time on some devices.
        """
        cu_seqlens, longest, document_M = self.cu_seqlens.long(), max(self.lengths, default=1), self.target_document
        place_M = document_M * longest + self.target_index - cu_seqlens[document_M]
        table = values_M.new_zeros(len(self.lengths) * longest).index_copy(0, place_M, values_M)
        return table.view(len(self.lengths), longest).sum(1)

    def to(self, device: torch.device) -> Packed:
        """The same pack with its tensors on `device`; the copies do not block the host."""

        def move(tensor: Tensor) -> Tensor:
            return tensor.to(device, non_blocking=True)

        names = ("input_ids", "position_ids", "cu_seqlens", "target_index", "targets")
        tensors: dict[str, Any] = {name: move(getattr(self, name)) for name in names}
        shared = self.shared and self.shared.to(move)
        return attrs.evolve(self, **tensors, shared=shared, fields={name: move(value) for name, value in self.fields.items()})


def pack(units: Sequence[Unit]) -> Packed:
    """Lay the sequences of `units` end to end. No units give an empty pack (T = 0)."""
    sequences = [s for unit in units for s in unit.sequences]
    lengths = tuple(len(s) for s in sequences)
    starts = [0]
    for length in lengths:
        starts.append(starts[-1] + length)
    learned = [_targets(s, start) for s, start in zip(sequences, starts, strict=False)]
    names = sequences[0].fields.keys() - {"learn"} if sequences else ()
    return Packed(
        input_ids=_cat([s.ids for s in sequences], torch.long),
        position_ids=_cat([torch.arange(n) for n in lengths], torch.long),
        cu_seqlens=torch.tensor(starts, dtype=torch.int32),
        lengths=lengths,
        target_index=_cat([index for index, _ in learned], torch.long),
        targets=_cat([target for _, target in learned], torch.long),
        fields={name: torch.cat([s.fields[name] for s in sequences]) for name in sorted(names)},
        documents=tuple((u, i) for u, unit in enumerate(units) for i in range(len(unit.sequences))),
        units=tuple(units),
        shared=find_shared_prompts([s.ids[: s.prompt] for s in sequences], starts, starts[-1]),
    )


def split_by_tokens(units: Iterable[Unit], budget: int) -> list[list[Unit]]:
    """Split a mini-batch into micro-batches of at most `budget` tokens; a longer unit is a micro-batch of its own.

    First fit by decreasing length, ties by position: deterministic, and the micro-batches are nearly full. Documents of
    similar length end up together, so that attention needs few kernel calls.
    """
    packs: list[list[Unit]] = []
    room: list[int] = []
    order = sorted(enumerate(units), key=lambda pair: (-pair[1].num_tokens, pair[0]))
    for _, unit in order:
        slot = next((i for i, free in enumerate(room) if free >= unit.num_tokens), None)
        if slot is None:
            packs.append([])
            room.append(max(budget, unit.num_tokens))
            slot = len(packs) - 1
        packs[slot].append(unit)
        room[slot] -= unit.num_tokens
    return packs


def _targets(sequence: Tokens, start: int) -> tuple[Tensor, Tensor]:
    """(target_index, targets) of a sequence that starts at `start` in the pack."""
    learn = sequence.fields.get("learn")
    # the first token is never a target: no position before it could predict it
    positions = torch.arange(1, len(sequence)) if learn is None else learn[1:].nonzero().squeeze(1) + 1
    return positions - 1 + start, sequence.ids[positions]


def _cat(parts: list[Tensor], dtype: torch.dtype) -> Tensor:
    return torch.cat(parts).to(dtype) if parts else torch.empty(0, dtype=dtype)
