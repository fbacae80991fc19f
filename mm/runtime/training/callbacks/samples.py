"""Sample completions at each evaluation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import attrs

from mm.core.callback import Callback
from mm.core.errors import UsageError
from mm.runtime.generation.engine import Engine, Request, Sampling
from mm.runtime.models.folder import LoadedModel
from mm.runtime.training.held_out import HeldOut
from mm.runtime.training.json_lines import append_lines, rewind_lines

if TYPE_CHECKING:
    from mm.core.callback import TrainingView
    from mm.runtime.text.tokenizer import Tokenizer

# tokens of the prompt from a document, all of which is learned; the prompt from a conversation ends before its first answer
_BEGINNING = 16


@attrs.frozen(kw_only=True)
class Prompt:
    """A text to continue, and the token ids that the model reads for it."""

    text: str
    ids: tuple[int, ...]


class Samples(Callback):
    """Continues each prompt at each evaluation, appends the completions to `path` and prints them. Only on the main rank.

    Decoding is greedy, so that completions differ between evaluations only because the model does. The engine's memory is
    freed after each evaluation.
    """

    name = "samples"

    def __init__(
        self, path: Path, prompts: Sequence[Prompt], tokens: int, loaded: LoadedModel, engine: Engine, say: Callable[[str], None]
    ) -> None:
        self.path, self.prompts, self.tokens = path, prompts, tokens
        self.loaded, self.engine, self.say = loaded, engine, say

    def on_start(self, run: TrainingView) -> None:
        """On a resume, delete the lines of steps that will be repeated."""
        rewind_lines(self.path, run.step)

    def on_evaluate(self, run: TrainingView, metrics: Mapping[str, float]) -> None:
        """One line per prompt."""
        tokenizer, model, step = self.loaded.tokenizer, self.loaded.model, run.step
        stop = tuple({tokenizer.eos_id, tokenizer.pad_id})
        requests = [
            Request(ids=prompt.ids, max_new_tokens=self.tokens, stop=stop, sampling=Sampling(temperature=0.0), key=(index,))
            for index, prompt in enumerate(self.prompts)
        ]
        training = model.training
        model.eval()
        try:
            completions = self.engine.generate(requests)
        finally:
            self.engine.release()
            model.train(training)
        for prompt, completion in zip(self.prompts, completions, strict=True):
            text = tokenizer.decode(completion.ids)
            line = {"step": step, "prompt": prompt.text, "text": text, "finish_reason": completion.finish_reason}
            append_lines(self.path, [line])
            self.say(f"sample, step {step}: {prompt.text!r} -> {text!r}")


def prompts_from_texts(texts: Sequence[str], tokenizer: Tokenizer, *, raw: bool, limit: int | None) -> list[Prompt]:
    """The prompts of `--sample-prompt`: documents to continue (`raw`) or user turns to answer.

    Raises UsageError for a prompt of more than `limit` tokens.
    """
    prompts = []
    for text in texts:
        begin = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
        ids = begin + tokenizer.encode(text, plain=True) if raw else tokenizer.encode_prompt([{"role": "user", "content": text}])
        if limit is not None and len(ids) > limit:
            room = f"but the model's positions leave room for {limit}"
            raise UsageError(f"--sample-prompt {text[:40]!r}...: {len(ids)} tokens, {room}.")
        prompts.append(Prompt(text=text, ids=tuple(ids)))
    return prompts


def prompts_from_rows(held_out: HeldOut, count: int, tokenizer: Tokenizer, *, limit: int | None) -> list[Prompt]:
    """Prompts from the first `count` held-out rows whose prompt has at most `limit` tokens: everything before the first
    learned token or, of a document, its first 16 tokens but at most half of it."""
    prompts: list[Prompt] = []
    for row in held_out.rows:
        if len(prompts) == count:
            break
        sequence = held_out.store.unit(row).sequences[0]
        learned = sequence.fields["learn"].nonzero()
        first = int(learned[0]) if len(learned) else len(sequence)
        ids = sequence.ids[: first if first > 1 else min(_BEGINNING, max(1, len(sequence) // 2))].tolist()
        if limit is None or len(ids) <= limit:
            prompts.append(Prompt(text=tokenizer.decode(ids, skip_special=False), ids=tuple(ids)))
    return prompts
