"""An ONNX file in onnxruntime, compared with our own model: the prompt at once, then token by token with the cache."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from mm.core.errors import CheckpointError
from mm.plugins.extras import install_command
from mm.runtime.models.sample_texts import TEXTS, logits_of

if TYPE_CHECKING:
    import onnxruntime
    from torch import Tensor

    from mm.plugins.architectures.dense import DenseConfig
    from mm.plugins.architectures.dense.model import Dense
    from mm.runtime.text.tokenizer import Tokenizer

_STEPS = 32
# of the largest logit, or of 1 if that is smaller
_TOLERANCE = 1e-4


def check(path: Path, model: Dense, tokenizer: Tokenizer) -> str:
    """The result, for the user. Raises CheckpointError if the logits of the file differ from those of the model."""
    try:
        import onnxruntime
    except ImportError:
        return f"not run, since onnxruntime is not installed: {install_command('onnx')}"
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    config = model.config
    furthest, equal, steps = 0.0, 0, 0
    for text in TEXTS:
        ids = tokenizer.encode(text, plain=True)[: max(1, config.max_position_embeddings - _STEPS)]
        drawn, found_TV = _greedy(session, config, ids, min(_STEPS, config.max_position_embeddings - len(ids)))
        own_TV = logits_of(model, [*ids, *drawn[:-1]])
        furthest = max(furthest, _difference(own_TV, found_TV, path))
        equal += sum(a == b for a, b in zip(drawn, own_TV[len(ids) - 1 :].argmax(-1).tolist(), strict=True))
        steps += len(drawn)
    return f"run in onnxruntime: {equal} of {steps} greedy tokens are those of the model, logits within {furthest:.1e}"


def _difference(own_TV: Tensor, found_TV: Tensor, path: Path) -> float:
    difference, bound = float((own_TV - found_TV).abs().max()), _TOLERANCE * max(1.0, float(own_TV.abs().max()))
    if not difference <= bound:  # NaN is refused too
        raise CheckpointError(f"{path.name}: its logits differ from the model's by {difference:.2g}; nothing was kept.")
    return difference


def _greedy(
    session: onnxruntime.InferenceSession, config: DenseConfig, ids: Sequence[int], steps: int
) -> tuple[list[int], Tensor]:
    """The likeliest tokens after `ids`, and the logits of all positions but the last."""
    names = [value.name for value in session.get_inputs()[3:]]
    empty = np.zeros((1, config.num_key_value_heads, 0, config.head_size), np.float32)
    cache, rows, drawn, new, past = dict.fromkeys(names, empty), [], list[int](), [*ids], 0
    for _ in range(steps):
        whole = past + len(new)
        feeds = {
            "input_ids": np.array([new], np.int64), "attention_mask": np.ones((1, whole), np.int64),
            "position_ids": np.arange(past, whole, dtype=np.int64)[None],
        }  # fmt: skip
        logits_1SV, *present = session.run(None, feeds | cache)
        rows.append(torch.from_numpy(logits_1SV[0]))
        drawn.append(int(logits_1SV[0, -1].argmax()))
        cache, past, new = dict(zip(names, present, strict=True)), whole, drawn[-1:]
    return drawn, torch.cat(rows)
