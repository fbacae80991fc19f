"""Base classes of the configs of architectures and adapters: the attributes that mm needs besides options, with defaults."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple, Self

import attrs

_NONE: Mapping[str, float] = MappingProxyType({})


class Footprint(NamedTuple):
    """Roughly the numbers that a model keeps; 0 is not known. Per token: `block`, those of one of the `blocks` for the backward,
    `stream`, what enters it, and `cache`, keys and values of all. `heads` of a block; `tables`, besides the parameters."""

    blocks: int = 1
    block: int = 0
    stream: int = 0
    heads: int = 0
    cache: int = 0
    tables: int = 0


@attrs.frozen(auto_attribs=False)
class ArchitectureConfig:
    """Base of an architecture's config, an `attrs.frozen` class whose fields are options.

    `vocab_size` must be one of the fields: it follows the tokenizer, by `attrs.evolve(config, vocab_size=n)`.
    `max_position_embeddings` is the longest document in tokens, as a field or a property; None, the default, stands for any
    length.
    """

    vocab_size: int
    max_position_embeddings: int | None = None

    def num_parameters(self) -> int:
        """The number of the model's parameters; tied ones count once."""
        raise NotImplementedError(f"{type(self).__name__}.num_parameters()")

    def flops_per_token(self, context: int) -> float:
        """Training FLOPs per token, forward and backward, in documents of `context` tokens."""
        raise NotImplementedError(f"{type(self).__name__}.flops_per_token(context)")

    def footprint(self) -> Footprint:
        """The sizes that a plan's estimate of memory needs; by default they are not known."""
        return Footprint()

    def num_active_parameters(self) -> int:
        """The parameters that one token passes; fewer than `num_parameters` if the model has routed experts."""
        return self.num_parameters()

    @property
    def idle_fields(self) -> frozenset[str]:
        """The fields that have no effect with the values of the others; descriptions leave them out."""
        return frozenset()

    @property
    def exported_scales(self) -> Mapping[str, float]:
        """Ending of a layer's name -> the factor of its weight in the exported checkpoint format; empty by default."""
        return _NONE

    def loaded_with(self, **changes: Any) -> Self:
        """The config of a trained model with other values of fields marked `on_load`. Override it if other fields depend on
        them. Raises ValueError with the name of a field in quotes."""
        return attrs.evolve(self, **changes)


@attrs.frozen(auto_attribs=False)
class AdapterConfig:
    """Base of an adapter's config. If a subclass makes `from_` an option, the adapter starts with that folder or file. The user
    may also name a run; the adapter then gets the folder of that run's adapter."""

    from_: str = ""
