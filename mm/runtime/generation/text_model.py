"""`TextModel`, which `mm.load` returns: a loaded model with its tokenizer and an engine, from text to text."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property, partial
from queue import SimpleQueue
from typing import Any, overload

import attrs

from mm.core.errors import UsageError
from mm.core.plugins import PluginManager
from mm.core.records import EngineSpec
from mm.core.say import Say, silent
from mm.core.workspace import Workspace
from mm.runtime.devices.backend import Backend
from mm.runtime.devices.dtypes import torch_dtype
from mm.runtime.generation.completion_text import CompletionText
from mm.runtime.generation.engine import Engine, Request
from mm.runtime.generation.options import GenerationOptions, read_options
from mm.runtime.models.finding import find_adapter, find_model
from mm.runtime.models.folder import LoadedModel, freeze, load_model_folder, merge_adapter
from mm.runtime.models.load_settings import Inference
from mm.runtime.models.opening import fuse_kernels, open_backend, use_threads
from mm.runtime.text.messages import Message

Messages = Sequence[Message | Mapping[str, Any]]
Prompt = str | Messages
OnText = Callable[[str], None]


@attrs.frozen(kw_only=True)
class Generation:
    """The completion of one prompt: `text` without special tokens and without the stop text, `ids` with the tokens that ended it,
    `logprobs` as in `Completion`, and `finish_reason` "stop" or "length". `seconds` is the time from the call to the last token.
    It includes reading the prompt and, in a batch, the time spent on the other prompts."""

    text: str
    ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish_reason: str
    prompt_tokens: int
    seconds: float

    @property
    def tokens_per_second(self) -> float:
        """The number of generated tokens per second."""
        return len(self.ids) / self.seconds if self.seconds else 0.0


class _Stopped(Exception):
    """Raised inside a generation after its stream was closed."""


class TextModel:
    """A model that generates text. `loaded` is the model with its config and tokenizer. Calls from several threads run one
    after the other. `say` prints the engine's notes when it is built."""

    def __init__(
        self, loaded: LoadedModel, backend: Backend, make_engine: Callable[[], Engine], say: Say = silent
    ) -> None:
        self.loaded, self.backend = loaded, backend
        self._make_engine, self._say = make_engine, say
        self._lock = threading.Lock()

    @cached_property
    def engine(self) -> Engine:
        """The engine, built at first use."""
        engine = self._make_engine()
        for note in engine.notes():
            self.backend.notes.append(note)
            self._say(note)
        return engine

    @overload
    def generate(self, prompt: str, **options: Any) -> Generation: ...
    @overload
    def generate(self, prompt: Sequence[Any], **options: Any) -> Any: ...
    def generate(
        self,
        prompt: Prompt | Sequence[Prompt],
        *,
        raw: bool = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
        on_text: OnText | None = None,
        **options: Any,
    ) -> Generation | list[Generation]:
        """Complete a prompt, or each prompt of a list. Returns a Generation, or a list of them.

        A prompt is a text (one user turn, or with `raw` the beginning of a document to continue) or a list of messages. `tools`
        are function schemas. `on_text` is called with pieces of the completion as they are generated, for a single prompt only.
        `options` are the fields of `GenerationOptions`, the options of `mm generate`. Raises UsageError if a prompt is too long,
        an option is unknown, out of range or without effect, or the chat template is missing.
        """
        settings = read_options(options)
        batch, prompts = _as_batch(prompt)
        if batch and on_text is not None:
            raise UsageError("on_text streams one prompt, not a list of them.")
        if raw and tools:
            raise UsageError("A raw prompt uses no chat template: tools would have no effect with it.")
        encode = self._encode_text if raw else partial(self._encode_conversation, tools=tools)
        tokenizer, sampling = self.loaded.tokenizer, settings.sampling(settings.temperature, settings.top_p, settings.top_k)
        requests = [
            Request(
                ids=tuple(encode(one, settings)), max_new_tokens=settings.max_new_tokens, sampling=sampling,
                stop=tuple({tokenizer.eos_id, tokenizer.pad_id}), key=(settings.seed, index),
            )
            for index, one in enumerate(prompts)
        ]  # fmt: skip
        with self._lock:
            found = self._complete(requests, settings.stop, on_text)
        return found if batch else found[0]

    def stream(self, prompt: Prompt, **options: Any) -> Iterator[str]:
        """The text of `generate(prompt, **options)`, piece by piece. Closing the iterator ends the generation."""
        pieces: SimpleQueue[str | BaseException | None] = SimpleQueue()
        closed = threading.Event()

        def put(text: str) -> None:
            if closed.is_set():
                raise _Stopped
            pieces.put(text)

        def work() -> None:
            try:
                self.generate(prompt, on_text=put, **options)
                pieces.put(None)
            except BaseException as error:
                pieces.put(error)

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        try:
            while (piece := pieces.get()) is not None:
                if isinstance(piece, BaseException):
                    raise piece
                yield piece
        finally:
            closed.set()
            thread.join()

    def _encode_text(self, prompt: Prompt, options: GenerationOptions) -> list[int]:
        if not isinstance(prompt, str):
            raise UsageError("A raw prompt is a text, not a conversation.")
        if unused := options.of_conversations():
            raise UsageError(f"A raw prompt uses no chat template: {', '.join(unused)} would have no effect with it.")
        tokenizer = self.loaded.tokenizer
        begin = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
        return begin + tokenizer.encode(prompt, plain=True)

    def _encode_conversation(
        self, prompt: Prompt, options: GenerationOptions, tools: Sequence[Mapping[str, Any]] | None
    ) -> list[int]:
        if isinstance(prompt, str) and options.history:
            raise UsageError("history has no effect on a single text: give the turns before it, as a list of messages.")
        messages = options.messages([Message("user", prompt)] if isinstance(prompt, str) else prompt)
        return self.loaded.tokenizer.encode_prompt(messages, tools, thinking=options.thinking)

    def _complete(self, requests: list[Request], stop: Sequence[str], on_text: OnText | None) -> list[Generation]:
        texts = [CompletionText(self.loaded.tokenizer, stop) for _ in requests]
        start = time.perf_counter()
        ends = [start] * len(requests)

        def show(piece: str) -> None:
            if on_text is not None and piece:
                on_text(piece)

        def take(index: int, token: int, logprob: float) -> bool:
            ends[index] = time.perf_counter()
            show(texts[index].push(token))
            return texts[index].ended

        completions = self.engine.generate(requests, on_token=take)
        for text in texts:
            show(text.finish())
        return [
            Generation(
                text=text.text, ids=c.ids, logprobs=c.logprobs, finish_reason=c.finish_reason, prompt_tokens=len(request.ids),
                seconds=end - start,
            )
            for text, c, request, end in zip(texts, map(CompletionText.cut, texts, completions), requests, ends, strict=True)
        ]  # fmt: skip


def load(
    plugins: PluginManager, text: str, workspace: Workspace, inference: Inference, say: Say = silent,
    *, adapter: tuple[str, str] | None = None,
) -> TextModel:  # fmt: skip
    """Load the model of a run or a model folder, frozen, on the backend's device. The type "auto" is the backend's default.
    `adapter` is (the kind, the text that names a saved one): its change is merged into the weights.

    Raises UsageError if the model does not exist or does not allow a changed setting, CheckpointError for damaged files.
    """
    chip = open_backend(plugins, inference.backend)
    loaded = load_model_folder(plugins, find_model(text, workspace, plugins), chip, inference.changes)
    if adapter is not None:
        merge_adapter(plugins, loaded.model, adapter[0], find_adapter(adapter[1], workspace, plugins))
    dtype = chip.default_dtype() if inference.dtype == "auto" else inference.dtype
    freeze(loaded.model, chip.device(), torch_dtype(dtype))
    use_threads(chip, loaded.model)
    chip.notes += [f"fused kernel: {kernel}" for kernel in fuse_kernels(chip, loaded.model)]
    engine = plugins.load(EngineSpec, inference.engine)
    return TextModel(loaded, chip, lambda: engine(inference.engine_config, loaded.model, chip), say)


def _as_batch(prompt: Prompt | Sequence[Prompt]) -> tuple[bool, list[Prompt]]:
    if isinstance(prompt, str):
        return False, [prompt]
    if not prompt:
        raise UsageError("There is no prompt: the list is empty.")
    if isinstance(prompt[0], Message | Mapping):
        return False, [prompt]  # type: ignore[list-item]
    return True, list(prompt)  # type: ignore[arg-type]
