"""The cost of quantised weights: how far the logits move that a model computes with them.

A repacker gives the weights as another program reads them back from its file (`Repacker.dequantised`); everything else is here,
once for all formats. Importing this module imports no torch.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING

import attrs

from mm.runtime.models.converter import Converter

if TYPE_CHECKING:
    from torch import Tensor

    from mm.runtime.models.folder import LoadedModel


@attrs.frozen
class Cost:
    """The mean KL divergence per token (in nats) from the original's prediction to that with quantised weights, the number of
    places where the likeliest token is the same, and that of all places."""

    divergence: float
    same: int
    places: int

    def __str__(self) -> str:
        return (
            f"KL divergence {self.divergence:.2g} nats per token from the original, the likeliest token is the same at "
            f"{self.same} of {self.places} places of the built-in texts"
        )


def with_weights(loaded: LoadedModel, converter: Converter, dequantised: Mapping[str, Tensor]) -> LoadedModel:
    """A copy of the model with weights under the names of the converter's format. Raises CheckpointError for a tensor that is
    missing, unexpected or misshapen."""
    model = copy.deepcopy(loaded.model)
    # a tied tensor is there under one of its names
    model.load_state_dict(converter.rules(loaded.config).to_ours(dequantised), strict=False)
    return attrs.evolve(loaded, model=model)


def cost_of(loaded: LoadedModel, other: LoadedModel) -> Cost:
    """The cost of the weights of the other model. Only weights are measured: what a format does to activations is not."""
    from mm.runtime.models.sample_texts import TEXTS, logits_of

    divergence, same, places = 0.0, 0, 0
    for text in TEXTS:
        ids = loaded.tokenizer.encode(text, plain=True)[: loaded.config.max_position_embeddings]
        own_TV, other_TV = (logits_of(each.model, ids).double().log_softmax(-1) for each in (loaded, other))
        divergence += float((own_TV.exp() * (own_TV - other_TV)).sum())
        same += int((own_TV.argmax(-1) == other_TV.argmax(-1)).sum())
        places += len(ids)
    return Cost(divergence / places, same, places)
