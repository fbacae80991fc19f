"""Units and packed batches. Packing is the native form: documents lie end to end and nothing is padded.

Shape suffixes used in the project: T tokens of a pack, N documents of a pack, M positions that are learned,
H heads, K key/value heads, D head size, E hidden size, V vocabulary, S cache slots, C cache capacity.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import attrs
import torch
from torch import Tensor

from mm.runtime.nn.shared import Shared, find_shared


@attrs.frozen(eq=False)
class Tokens:
    """One token sequence. `fields` are tensors of the same length: `learn` (bool: is this token a target?), and
    whatever an algorithm adds in `prepare` (advantages, reference log-probabilities). `prompt`: so many first tokens that
    other sequences of a pack are likely to begin with too; they are then computed once."""

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
    """What is never cut: a document (one sequence), a pair (two), an episode. `row_index` is its number in the data;
    `values` are numbers of the whole unit. `repeat` is how often the row came before among those that were taken with it."""

    sequences: tuple[Tokens, ...]
    row_index: int = -1
    values: Mapping[str, float] = attrs.field(factory=dict)
    repeat: int = 0

    @property
    def num_tokens(self) -> int:
        """Tokens of all sequences."""
        return sum(len(s) for s in self.sequences)


@attrs.define(eq=False)
class Packed:
    """A micro-batch of N documents laid end to end.

    `input_ids_T`, `position_ids_T` (from 0 in each document), `cu_seqlens` (N + 1 int32 offsets), `lengths` (the
    same on the host), `fields` (token-aligned tensors), `documents` (for each document its unit's index in this pack
    and its place in that unit) and `units`. `targets_M` and `target_index_M`: the learned positions, where
    `target_index` is the position whose hidden state predicts `targets`; both are made on the host, so that selecting
    them never synchronises the device. `shared` says which tokens are computed once, where there are equal prompts.
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
    shared: Shared | None = None

    @property
    def num_tokens(self) -> int:
        """T."""
        return int(self.input_ids.shape[0])

    @property
    def num_targets(self) -> int:
        """M."""
        return int(self.targets.shape[0])

    @property
    def target_document(self) -> Tensor:
        """The document of each learned position, M; computed on the device, without a synchronisation."""
        return torch.searchsorted(self.cu_seqlens[1:].long(), self.target_index, right=True)

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
        """The same pack with its tensors on `device`; copies do not block the host."""

        def move(tensor: Tensor) -> Tensor:
            return tensor.to(device, non_blocking=True)

        names = ("input_ids", "position_ids", "cu_seqlens", "target_index", "targets")
        moved: dict[str, Any] = {name: move(getattr(self, name)) for name in names}
        shared = self.shared and self.shared.to(move)
        return attrs.evolve(self, **moved, shared=shared, fields={name: move(value) for name, value in self.fields.items()})


def pack(units: Sequence[Unit]) -> Packed:
    """Lay the sequences of `units` end to end. An empty list gives an empty pack (T = 0)."""
    sequences = [s for unit in units for s in unit.sequences]
    lengths = tuple(len(s) for s in sequences)
    starts = [0]
    for length in lengths:
        starts.append(starts[-1] + length)
    learned = [_learned(s, start) for s, start in zip(sequences, starts, strict=False)]
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
        shared=find_shared([s.ids[: s.prompt] for s in sequences], starts, starts[-1]),
    )


def split_by_tokens(units: Iterable[Unit], budget: int) -> list[list[Unit]]:
    """Cut a mini-batch into micro-batches of at most `budget` tokens each (a longer unit stands alone).

    First fit on decreasing length, ties by position: deterministic, and close to full. Documents of like length end
    up together, which attention over equal lengths turns into one kernel call.
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


def _learned(sequence: Tokens, start: int) -> tuple[Tensor, Tensor]:
    learn = sequence.fields.get("learn")
    # the first token has no position before it that could predict it
    places = torch.arange(1, len(sequence)) if learn is None else learn[1:].nonzero().squeeze(1) + 1
    return places - 1 + start, sequence.ids[places]


def _cat(parts: list[Tensor], dtype: torch.dtype) -> Tensor:
    return torch.cat(parts).to(dtype) if parts else torch.empty(0, dtype=dtype)
