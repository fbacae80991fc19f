"""The reward `model`."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from mm.contracts import Reward
from mm.core.errors import CheckpointError, UsageError
from mm.plugins.rewards.matching import final_turn
from mm.plugins.rewards.model import ModelConfig
from mm.runtime.devices.dtypes import DTYPES
from mm.runtime.text.messages import as_dicts
from mm.runtime.text.replies import answer_text

_BOUND = 3.0
_WHOLE, _ANSWER = 0.4, 0.6

Conversation = list[dict[str, Any]]


class ModelReward(Reward):
    """MiniMind's use of a reward model: its score for the conversation with the completion, within -3 and 3; where
    there are answer tags 0.4 of it, and 0.6 of the score of what stands in them alone.

    A model for sequence classification with one label, whose output is the score; or, with `trust_remote_code`, whatever
    has `get_score(tokenizer, messages)`, such as InternLM2's.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self._device = _device(config.device)
        self._tokenizer, self._model = _load(config)
        self._model.to(self._device).eval().requires_grad_(False)
        # the score is that of the last token that is no padding, so the model must know what padding is
        self._pad = self._model.config.pad_token_id
        if self._pad is None:
            self._pad = self._model.config.pad_token_id = self._tokenizer.pad_token_id

    def __call__(self, rows: Sequence[Any], completions: Sequence[str]) -> list[float | None]:
        """See the class; None for rows that are no conversations."""
        texts = [final_turn(text) for text in completions]
        asked = [as_dicts(row.messages) if hasattr(row, "messages") else None for row in rows]
        answers = [answer_text(text) for text in texts]
        wanted = [(i, said) for i, both in enumerate(zip(texts, answers, strict=True)) for said in both if said is not None]
        wanted = [(i, said) for i, said in wanted if asked[i] is not None]
        found = self._scores([[*(asked[i] or ()), {"role": "assistant", "content": said}] for i, said in wanted])
        of_row: list[list[float]] = [[] for _ in texts]
        for (i, _), score in zip(wanted, found, strict=True):
            of_row[i].append(max(-_BOUND, min(_BOUND, score)))
        return [_combined(scores) for scores in of_row]

    @torch.no_grad()
    def _scores(self, conversations: list[Conversation]) -> list[float]:
        if hasattr(self._model, "get_score"):
            return [float(self._model.get_score(self._tokenizer, messages)) for messages in conversations]
        size, found = 1 if self._pad is None else self.config.batch_size, []
        for start in range(0, len(conversations), size):
            texts = [self._text(messages) for messages in conversations[start : start + size]]
            found += self._model(**self._batch(texts)).logits[:, 0].float().tolist()
        return found

    def _text(self, messages: Conversation) -> str:
        if self._tokenizer.chat_template:
            return str(self._tokenizer.apply_chat_template(messages, tokenize=False))
        return "\n".join(f"{message['role']}: {message['content']}" for message in messages)

    def _batch(self, texts: list[str]) -> dict[str, Any]:
        longest, pad = self.config.max_length, self._pad or 0
        rows = self._tokenizer(texts, add_special_tokens=not self._tokenizer.chat_template)["input_ids"]
        if any(len(ids) > longest for ids in rows):
            warnings.warn(f"--model-max-length {longest}: longer conversations lose their beginning", stacklevel=2)
        rows = [ids[-longest:] for ids in rows]
        width = max(map(len, rows))
        ids = torch.tensor([row + [pad] * (width - len(row)) for row in rows], device=self._device)
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows], device=self._device)
        return {"input_ids": ids, "attention_mask": mask}


def _combined(scores: list[float]) -> float | None:
    if not scores:
        return None
    return scores[0] if len(scores) == 1 else _WHOLE * scores[0] + _ANSWER * scores[1]


def _device(name: str) -> torch.device:
    if name != "auto":
        try:
            return torch.device(name)
        except RuntimeError:
            raise UsageError(f"--model-device {name}: torch knows no such device.") from None
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return torch.device("cpu") if found is None else torch.device(found.type, torch.accelerator.current_device_index())


def _load(config: ModelConfig) -> tuple[Any, Any]:
    from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, AutoTokenizer

    folder = config.path
    if folder is None:
        raise UsageError("--reward model needs --model-path FOLDER, a reward model in the Hugging Face layout.")
    described = _described(folder)
    code, trusted = "auto_map" in described, config.trust_remote_code
    if code and not trusted:
        raise UsageError(f"--model-path {folder}: the model needs the Python code in its folder, which is run only with "
                         "--model-trust-remote-code.")  # fmt: skip
    # of a model that brings code, only get_score is known
    kind = AutoModel if code else AutoModelForSequenceClassification
    options = {"trust_remote_code": trusted, "local_files_only": True}
    try:
        labels = AutoConfig.from_pretrained(folder, **options).num_labels
        if not code and labels != 1:
            raise UsageError(f"--model-path {folder}: the model has {labels} labels; a reward model has one.")
        tokenizer = AutoTokenizer.from_pretrained(folder, **options)
        model, loaded = kind.from_pretrained(folder, dtype=DTYPES.get(config.dtype, "auto"), output_loading_info=True, **options)
    except (OSError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"--model-path {folder}: {error}") from error
    if loaded["missing_keys"]:  # they would be random
        raise CheckpointError(f"--model-path {folder}: no reward model: {', '.join(sorted(loaded['missing_keys']))} is missing.")
    if code and not hasattr(model, "get_score"):
        raise UsageError(f"--model-path {folder}: its code has no get_score(tokenizer, messages).")
    return tokenizer, model


def _described(folder: Path) -> dict[str, Any]:
    try:
        return json.loads((folder / "config.json").read_text(encoding="utf-8"))  # type: ignore[no-any-return]
    except FileNotFoundError:
        raise UsageError(f"--model-path {folder}: no model folder, it has no config.json.") from None
    except ValueError as error:
        raise CheckpointError(f"{folder / 'config.json'}: damaged: {error}") from None
