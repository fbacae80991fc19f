"""The implementation of the reward `model`."""

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
from mm.plugins.rewards.model import ModelConfig, check_folder
from mm.runtime.devices.dtypes import DTYPES
from mm.runtime.text.messages import as_dicts
from mm.runtime.text.replies import answer_text

_BOUND = 3.0
# "The above is the history of the conversation. My new question is:", as MiniMind 3 puts it
_QUESTION = "以上是对话历史。我的新问题是："
_TURN_WEIGHT, _ANSWER_WEIGHT = 0.4, 0.6

Conversation = list[dict[str, Any]]


class ModelReward(Reward):
    """The score of a reward model, combined as in MiniMind.

    The model scores the conversation with the last turn of the completion; the score is clipped to -3 to 3. If that turn
    has answer tags, the model also scores the conversation with the text between them, and the reward is 0.4 times the
    first score plus 0.6 times the second. With `answer_only` the reward is the score of what follows </think>.

    The reward model is a sequence classifier with one label, whose output is the score; or, with `trust_remote_code`, a
    model with `get_score(tokenizer, messages)`, such as InternLM2's.
    """

    name = "model"  # of the reward that has the options

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self._device = _device(config.device, f"--{self.name}-device")
        self._tokenizer, self._model = _load(config, self.name)
        self._model.to(self._device).eval().requires_grad_(False)
        # the score is that of the last token before the padding, so the model must know the padding id
        self._pad = self._model.config.pad_token_id
        if self._pad is None:
            self._pad = self._model.config.pad_token_id = self._tokenizer.pad_token_id

    def __call__(self, rows: Sequence[Any], completions: Sequence[str]) -> list[float | None]:
        """See the class. None for rows that are not conversations."""
        turns = [final_turn(text) for text in completions]
        prompts = [self._prompt(as_dicts(row.messages)) if hasattr(row, "messages") else None for row in rows]
        replies = [
            (i, reply)
            for i, turn in enumerate(turns)
            for reply in self._replies(turn)
            if reply is not None and prompts[i] is not None
        ]
        scores = self._scores([[*(prompts[i] or ()), {"role": "assistant", "content": reply}] for i, reply in replies])
        by_row: list[list[float]] = [[] for _ in turns]
        for (i, _), score in zip(replies, scores, strict=True):
            by_row[i].append(max(-_BOUND, min(_BOUND, score)))
        return [_combine(row_scores) for row_scores in by_row]

    def _prompt(self, messages: Conversation) -> Conversation:
        if not self.config.flat_history or not messages:
            return messages
        history = "\n".join(f"{message['role']}: {message['content'].strip()}" for message in messages[:-1])
        question = messages[-1]["content"].strip()
        return [{"role": "user", "content": f"{history}\n{_QUESTION}\n{question}" if history else question}]

    def _replies(self, turn: str) -> tuple[str | None, ...]:
        """The texts that are scored: of a turn and, if it has one, of its tagged answer; or what follows its thoughts."""
        if not self.config.answer_only:
            return turn, answer_text(turn)
        _, closed, answer = turn.partition("</think>")
        return (answer.strip() if closed else turn,)

    @torch.no_grad()
    def _scores(self, conversations: list[Conversation]) -> list[float]:
        if hasattr(self._model, "get_score"):
            return [float(self._model.get_score(self._tokenizer, messages)) for messages in conversations]
        size, scores = 1 if self._pad is None else self.config.batch_size, []
        for start in range(0, len(conversations), size):
            texts = [self._text(messages) for messages in conversations[start : start + size]]
            scores += self._model(**self._batch(texts)).logits[:, 0].float().tolist()
        return scores

    def _text(self, messages: Conversation) -> str:
        if self._tokenizer.chat_template:
            return str(self._tokenizer.apply_chat_template(messages, tokenize=False))
        return "\n".join(f"{message['role']}: {message['content']}" for message in messages)

    def _batch(self, texts: list[str]) -> dict[str, Any]:
        longest, pad = self.config.max_length, self._pad or 0
        rows = self._tokenizer(texts, add_special_tokens=not self._tokenizer.chat_template)["input_ids"]
        if any(len(ids) > longest for ids in rows):
            warnings.warn(f"--{self.name}-max-length {longest}: longer conversations are cut at their start", stacklevel=2)
        rows = [ids[-longest:] for ids in rows]
        width = max(map(len, rows))
        ids = torch.tensor([row + [pad] * (width - len(row)) for row in rows], device=self._device)
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows], device=self._device)
        return {"input_ids": ids, "attention_mask": mask}


def _combine(scores: list[float]) -> float | None:
    if not scores:
        return None
    return scores[0] if len(scores) == 1 else _TURN_WEIGHT * scores[0] + _ANSWER_WEIGHT * scores[1]


def _device(name: str, flag: str) -> torch.device:
    if name != "auto":
        try:
            return torch.device(name)
        except RuntimeError:
            raise UsageError(f"{flag} {name}: not a torch device. Give auto, cpu, or a device such as cuda:1.") from None
    chip = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return torch.device("cpu") if chip is None else torch.device(chip.type, torch.accelerator.current_device_index())


def _load(config: ModelConfig, name: str) -> tuple[Any, Any]:
    from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, AutoTokenizer

    folder, flag = check_folder(config.path, name), f"--{name}-path"
    has_code, trusted = "auto_map" in _read_config(folder), config.trust_remote_code
    if has_code and not trusted:
        raise UsageError(f"{flag} {folder}: the model needs the Python code in its folder, which is run only with "
                         f"--{name}-trust-remote-code.")  # fmt: skip
    # a model with code of its own need not be a classifier: only its get_score is used
    kind = AutoModel if has_code else AutoModelForSequenceClassification
    options = {"trust_remote_code": trusted, "local_files_only": True}
    try:
        labels = AutoConfig.from_pretrained(folder, **options).num_labels
        if not has_code and labels != 1:
            raise UsageError(f"{flag} {folder}: the model has {labels} labels; a reward model has one.")
        tokenizer = AutoTokenizer.from_pretrained(folder, **options)
        model, loaded = kind.from_pretrained(folder, dtype=DTYPES.get(config.dtype, "auto"), output_loading_info=True, **options)
    except (OSError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{flag} {folder}: {error}") from error
    if missing := sorted(loaded["missing_keys"]):  # transformers has initialised them randomly
        raise CheckpointError(f"{flag} {folder}: not a reward model: {', '.join(missing)} is missing.")
    if has_code and not hasattr(model, "get_score"):
        raise UsageError(f"{flag} {folder}: its code has no get_score(tokenizer, messages).")
    return tokenizer, model


def _read_config(folder: Path) -> dict[str, Any]:
    try:
        return json.loads((folder / "config.json").read_text(encoding="utf-8"))  # type: ignore[no-any-return]
    except ValueError as error:
        raise CheckpointError(f"{folder / 'config.json'}: damaged: {error}") from None
