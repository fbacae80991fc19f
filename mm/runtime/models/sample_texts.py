"""Built-in texts, and a model's logits of them: what a model says, without any data of the user's."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mm.runtime.nn.batch import Tokens, Unit, pack
from mm.runtime.nn.model import Model

# plain sentences such as any corpus has
TEXTS = (
    "今天天气很好，我们一起去公园散步。她说：“这是一个很好的问题，我来告诉你答案。”中国有很长的历史和很多的城市。",
    "The sun rises in the east and sets in the west. He said that he would come back home after the end of the day.",
)


@torch.inference_mode()
def logits_of(model: Model, ids: Sequence[int]) -> Tensor:
    """The logits after each of the tokens, in float32."""
    logits_TV: Tensor
    logits_TV, _ = model.eval()(pack([Unit((Tokens(torch.tensor(ids)),))]))
    return logits_TV.float()
