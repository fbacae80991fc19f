"""The contracts of a generation cache and of models that have one. All are optional: an engine checks with `isinstance`.

Importing this module imports no torch. Legend: mm.runtime.nn.batch, and A active slots.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from mm.runtime.nn.batch import Packed

    Decode = Callable[[Tensor, Sequence[int], Any], Tensor]


@runtime_checkable
class Cache(Protocol):
    """The states of documents that are being generated, one document per slot: keys and values, or a recurrent state."""

    @property
    def slots(self) -> int:
        """The number of slots, S."""

    @property
    def capacity(self) -> int | None:
        """The most tokens that a slot can hold; None for a state whose size does not depend on the tokens."""

    @property
    def lengths(self) -> Sequence[int]:
        """The tokens that each slot has read, as host integers."""

    @property
    def device(self) -> torch.device:
        """The device that prompts and tokens must be on."""

    def copy(self, source: int, targets: Sequence[int]) -> None:
        """Give each target slot the state of `source`. They are independent from then on."""

    def clear(self, slots: Sequence[int]) -> None:
        """Empty these slots. The others keep their states."""


@runtime_checkable
class SupportsTruncate(Protocol):
    """A cache whose slots can drop their last tokens. A recurrent state cannot, and does not implement this method."""

    def truncate(self, slots: Sequence[int], length: int) -> None:
        """Set each of these slots to its state after its first `length` tokens. Raises ValueError if one holds fewer."""


@runtime_checkable
class SupportsCache(Protocol):
    """A model that generates with a cache. Without it, every token takes a forward over its whole document.

    `cache` is always one that `new_cache` of the same model returned. The engine calls these methods without gradients.
    """

    def new_cache(self, slots: int, capacity: int) -> Cache:
        """An empty cache on the model's device for `slots` documents of at most `capacity` tokens."""

    def prefill(self, batch: Packed, slots: Sequence[int], cache: Any) -> Tensor:
        """Read document n of the pack into slot n, after the tokens that this slot holds; a pack may have documents for
        empty slots and for others. Returns the float32 logits_NV of the tokens that follow each document."""

    def decode(self, ids_A: Tensor, slots_A: Sequence[int], cache: Any) -> Tensor:
        """Append one token to each of the A slots, in any order. Returns the float32 logits_AV of the tokens after them."""


@runtime_checkable
class SupportsFastDecode(SupportsCache, Protocol):
    """A model with a cache and a faster `decode` for weights that do not change."""

    def fast_decode(self) -> Decode:
        """A function with the arguments and result of `decode`, which uses a copy of the present weights in a faster layout."""
